package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestADiskIsAHomeWhenSomethingIsRememberedThere(t *testing.T) {
	for _, one := range []struct {
		name, label, has string
		err              error
		home             bool
	}{
		{"a node", "PARTNAME=kubermesh-var", "lib/kubermesh/join.json", nil, true},
		{"an install that was cut off", "PARTNAME=kubermesh-var", "lost+found/x", nil, false},
		{"an install that was cut off while it was claimed", "PARTNAME=kubermesh-var", "begun/lib/kubermesh/join.json", nil, false},
		{"a stick", "PARTNAME=kubermesh-b", "lib/kubermesh/join.json", nil, false},
		{"another label", "PARTNAME=kubermesh-var2", "lib/kubermesh/join.json", nil, false},
		{"one that cannot be read", "PARTNAME=kubermesh-var", "", errors.New("input/output error"), true},
	} {
		t.Run(one.name, func(t *testing.T) {
			top := t.TempDir()
			drive := filepath.Join(top, "devices/vda")
			put(t, filepath.Join(drive, "vda2/uevent"), "DEVNAME=vda2\nPARTNAME=kubermesh-a")
			put(t, filepath.Join(drive, "vda6/uevent"), "DEVNAME=vda6\n"+one.label)
			put(t, filepath.Join(top, "devices/vdb/vdb6/uevent"), "DEVNAME=vdb6\nPARTNAME=kubermesh-var")
			put(t, filepath.Join(top, "devices/sda/sda2/uevent"), "DEVNAME=sda2\nPARTNAME=kubermesh-a")
			put(t, filepath.Join(top, "udev/b8:2"), "E:ID_PART_ENTRY_UUID=aa\nE:ID_PART_ENTRY_NUMBER=2\n")
			put(t, filepath.Join(top, "udev/b254:2"), "S:disk/by-partuuid/aa\nE:ID_PART_ENTRY_UUID=aa\nE:ID_FS_TYPE=erofs\n")
			put(t, filepath.Join(top, "udev/b254:18"), "E:ID_PART_ENTRY_UUID=aab\n")
			put(t, filepath.Join(top, "numbers/other"), "")
			for number, name := range map[string]string{"8:2": "sda/sda2", "254:2": "vda/vda2", "254:18": "vdb/vdb6"} {
				if err := os.Symlink(filepath.Join(top, "devices", name), filepath.Join(top, "numbers", number)); err != nil {
					t.Fatal(err)
				}
			}
			put(t, filepath.Join(top, "var", one.has, "x"), "")
			mounts := 0
			found := &blockDevices{filepath.Join(top, "numbers"), filepath.Join(top, "udev"), func(string) (string, func(), error) {
				mounts++
				return filepath.Join(top, "var"), func() {}, one.err
			}, map[string]bool{}}
			for range 2 {
				if found.hasHome("aa") != one.home {
					t.Errorf("home is %v", !one.home)
				}
			}
			if !one.home && mounts > 1 {
				t.Errorf("mounted %d times", mounts)
			}
			if found.hasHome("a") || found.hasHome("bb") {
				t.Error("a disk that is not there is a home")
			}
		})
	}
}
