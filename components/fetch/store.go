package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Where the root has the digest of the boot image that belongs to it (agent/kmplan/boot_images.py).
const digestFile = "usr/lib/kubermesh/boot-image.sha256"

// store is where the root is kept: in memory (zram, Documentation/admin-guide/blockdev/zram.rst), or in files.
type store struct {
	root   rootHash
	folder string
	data   *os.File
	names  []string
}

func newStore(folder string, root rootHash) (*store, error) {
	if folder == "" {
		// What was fetched before this program was started again.
		before, _ := filepath.Glob("/sys/block/zram*/reset")
		for _, path := range before {
			_ = os.WriteFile(path, []byte("1"), 0o644)
		}
		return &store{root: root}, command("modprobe", "zram", "num_devices=0")
	}
	return &store{root: root, folder: folder}, os.MkdirAll(folder, 0o755)
}

// create makes room for `size` bytes of the root, and keeps its hashes.
func (kept *store) create(size int64, hashes []byte) error {
	kept.drop()
	hashFile, err := kept.make("hashes", int64(len(hashes)))
	if err != nil {
		return err
	}
	defer hashFile.Close()
	if _, err := hashFile.Write(hashes); err != nil {
		return err
	}
	if err := hashFile.Sync(); err != nil {
		return err
	}
	kept.data, err = kept.make("root", size)
	return err
}

// drop gives up what a try before this one has made.
func (kept *store) drop() {
	if kept.data != nil {
		kept.data.Close()
	}
	for _, device := range kept.names {
		_ = os.WriteFile(filepath.Join("/sys/block", device, "reset"), []byte("1"), 0o644)
		_ = os.WriteFile("/sys/class/zram-control/hot_remove", []byte(strings.TrimPrefix(device, "zram")), 0o644)
	}
	kept.names = nil
}

func (kept *store) make(name string, size int64) (*os.File, error) {
	if kept.folder != "" {
		file, err := os.Create(filepath.Join(kept.folder, name))
		if err == nil {
			err = file.Truncate(size)
		}
		return file, err
	}
	text, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		return nil, err
	}
	device := "zram" + strings.TrimSpace(string(text))
	kept.names = append(kept.names, device)
	limit := filepath.Join("/sys/block", device, "disksize")
	if err := os.WriteFile(limit, []byte(strconv.FormatInt(size, 10)), 0o644); err != nil {
		return nil, err
	}
	// Something else of the machine may be slow.
	_ = command("udevadm", "settle", "--timeout=30")
	return os.OpenFile("/dev/"+device, os.O_RDWR, 0)
}

func (kept *store) write(data []byte, at int64) (int, error) { return kept.data.WriteAt(data, at) }

func (kept *store) sync() error { return kept.data.Sync() }

// bootDigest returns what the root says of its boot image: SHA-256, in hex, with nothing in the place of the root hash.
func (kept *store) bootDigest() (string, error) {
	folder, err := os.MkdirTemp("/run", "kubermesh-root-")
	if err != nil {
		return "", err
	}
	defer os.Remove(folder)
	device := "/dev/" + kept.names[len(kept.names)-1]
	if err := syscall.Mount(device, folder, "erofs", syscall.MS_RDONLY|syscall.MS_NOEXEC|syscall.MS_NOSUID, ""); err != nil {
		return "", fmt.Errorf("the root that was fetched: %w", err)
	}
	defer syscall.Unmount(folder, 0)
	text, err := os.ReadFile(filepath.Join(folder, digestFile))
	return strings.TrimSpace(string(text)), err
}

// show lets udev name the devices in memory like the partitions that they are in the place of.
func (kept *store) show() error {
	kept.data.Close()
	if kept.folder != "" {
		return nil
	}
	uuids := []string{kept.root.hashUUID(), kept.root.dataUUID()}
	rules := ""
	for place, device := range kept.names {
		// A stick or a disk that is not completed may have the same, and is not what was checked.
		rules += fmt.Sprintf("SUBSYSTEM==\"block\", KERNEL==\"%s\", SYMLINK+=\"disk/by-partuuid/%s\", "+
			"OPTIONS+=\"link_priority=100\", TAG+=\"systemd\"\n", device, uuids[place])
	}
	if err := os.MkdirAll(rulesFolder, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(rulesFolder, "90-kubermesh-fetch.rules"), []byte(rules), 0o644); err != nil {
		return err
	}
	if err := command("udevadm", "control", "--reload"); err != nil {
		return err
	}
	for _, device := range kept.names {
		if err := command("udevadm", "trigger", "--settle", "--action=change", "/dev/"+device); err != nil {
			return err
		}
	}
	return nil
}
