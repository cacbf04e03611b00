package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// What a machine remembers: the label of its partition (overlays/root/usr/lib/kubermesh/repart.d), and a folder that is there
// from when the machine has been told its cluster (agent/kmagent/install.py, claim).
const (
	varLabel = "PARTNAME=kubermesh-var"
	varState = "lib/kubermesh"
)

// blockDevices knows which partitions are no home; nobody else writes to them while this program runs.
type blockDevices struct {
	sys     string // by major:minor
	udev    string // what udev knows of each (systemd-udevd.service(8), by blkid)
	mount   func(device string) (folder string, release func(), err error)
	unknown map[string]bool
}

var disks = &blockDevices{"/sys/dev/block", "/run/udev/data", mountVar, map[string]bool{}}

// hasHome tells whether a disk with the root, on a partition with this UUID, is one that a machine lives on. Several may have it.
//
// A disk whose install was cut off is none yet: its system knows no cluster, and would never be told. Nor is a stick that
// was flashed and left in. What cannot be read may be the home of somebody.
func (known *blockDevices) hasHome(uuid string) bool {
	records, _ := filepath.Glob(filepath.Join(known.udev, "b*"))
	for _, path := range records {
		text, _ := os.ReadFile(path)
		number := strings.TrimPrefix(filepath.Base(path), "b")
		if strings.Contains(string(text), "E:ID_PART_ENTRY_UUID="+uuid+"\n") && known.isHome(number) {
			return true
		}
	}
	return false
}

// isHome tells whether the disk of a partition, `major:minor`, has what a machine remembers.
func (known *blockDevices) isHome(number string) bool {
	partition, err := filepath.EvalSymlinks(filepath.Join(known.sys, number))
	if err != nil {
		return false
	}
	others, _ := filepath.Glob(filepath.Join(filepath.Dir(partition), "*", "uevent"))
	for _, path := range others {
		text, _ := os.ReadFile(path)
		if strings.Contains(string(text)+"\n", varLabel+"\n") && known.remembers(filepath.Base(filepath.Dir(path))) {
			return true
		}
	}
	return false
}

// remembers tells whether a partition has what a machine remembers.
func (known *blockDevices) remembers(name string) bool {
	if known.unknown[name] {
		return false
	}
	folder, release, err := known.mount("/dev/" + name)
	if err != nil {
		say("%s cannot be read: %v", name, err)
		return true
	}
	defer release()
	known.unknown[name] = !exists(filepath.Join(folder, varState))
	return !known.unknown[name]
}

// mountVar shows what is on a partition, with what its journal has.
func mountVar(device string) (string, func(), error) {
	folder, err := os.MkdirTemp("/run", "kubermesh-var-")
	if err != nil {
		return "", nil, err
	}
	flags := uintptr(syscall.MS_RDONLY | syscall.MS_NOEXEC | syscall.MS_NOSUID | syscall.MS_NODEV)
	if err := syscall.Mount(device, folder, "ext4", flags, ""); err != nil {
		os.Remove(folder)
		return "", nil, err
	}
	return folder, func() { syscall.Unmount(folder, 0); os.Remove(folder) }, nil
}
