"""The mesh agent: one asyncio daemon that owns a node from power-on to Ready."""
