"""What is on an EFI system partition: systemd-boot, and boot images for it (https://uapi-group.org/specifications/specs/boot_loader_specification)."""

from pathlib import Path

LOADER = Path("usr/lib/systemd/boot/efi/systemd-bootx64.efi")
# What firmware starts, when nothing else is said and by its boot entry, and where that looks for boot images.
LOADERS, ENTRIES = ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"), "EFI/Linux"


def layout(loader: Path, boot_image: Path, entry: str) -> dict[str, Path | str]:
    """Return what is at which path: a file to copy, or text; `entry` is the boot image's name, which says version and tries."""
    return {
        **dict.fromkeys(LOADERS, loader),
        f"{ENTRIES}/{entry}.efi": boot_image,
        "loader/entries.srel": "type1\n",
        "loader/loader.conf": "timeout 0\neditor no\n",
    }
