"""The stages of a build, one module each; `ALL` is the whole graph, each stage after those that it needs."""

from kmbuild.stages import components, containers, disk, fetch, initrd, root, tools, tree

ALL = (tools.STAGE, *components.STAGES, fetch.STAGE, tree.STAGE, containers.STAGE, root.STAGE, initrd.STAGE, disk.STAGE)
