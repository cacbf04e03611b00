// Command kubermesh-fetch gives a machine that was booted from the network its root: it asks the neighbours on all cables,
// takes root and hashes from one that has the very root that the boot image names, block by block and each checked against the
// root hash, and goes on with the next neighbour where one fails. It keeps them in memory (zram), where udev shows them as the
// partitions that systemd-veritysetup(8) waits for.
//
// usage: kubermesh-fetch [-kernel-arguments FILE] [-pinned FILE] [-into FOLDER]
//
// With -into it writes files `root` and `hashes` there, and changes nothing of the machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// What the running system finds of all this, and where systemd looks for credentials (systemd.exec(5)).
	bootFolder  = "/run/kubermesh-boot"
	credentials = "/run/credstore"
	byUUID      = "/dev/disk/by-partuuid"
	rulesFolder = "/run/udev/rules.d"
	// A disk with the same root may be slower to show up than a neighbour.
	disksFirst = 3 * time.Second
	look       = 500 * time.Millisecond
	// How long to look for a neighbour before that is said, and until it is said again.
	patience = 5 * time.Second
	repeat   = 30 * time.Second
)

func main() {
	arguments := flag.String("kernel-arguments", "/proc/cmdline", "file with the kernel's command line")
	known := flag.String("pinned", "/run/credentials/@system/kubermesh.join", "file that says which cluster this machine belongs to")
	into := flag.String("into", "", "folder to write to, in the place of memory")
	flag.Parse()
	if err := run(*arguments, *known, *into); err != nil {
		say("this machine cannot boot from the network: %v", err)
		os.Exit(1)
	}
}

func run(arguments, known, into string) error {
	text, err := os.ReadFile(arguments)
	if err != nil {
		return err
	}
	root, err := parseRootHash(string(text))
	if err != nil {
		return err
	}
	if into == "" && onDisk(root) {
		say("the system is on a disk of this machine")
		return nil
	}
	store, err := newStore(into, root)
	if err != nil {
		return err
	}
	pinned, err := readPinned(known)
	if err != nil {
		return err
	}
	finder := newFinder()
	defer finder.close()
	taken := &transfer{root: root, store: store}
	toldAt := time.Now().Add(patience - repeat)
	for {
		if into == "" && !taken.begun && onDisk(root) {
			say("the system is on a disk of this machine")
			return nil
		}
		sources := finder.look(root, pinned)
		if len(sources) == 0 && time.Since(toldAt) > repeat {
			toldAt = time.Now()
			say("looking for a neighbour that has this system (%.12s…)%s", root.text, finder.refused())
		}
		for _, source := range sources {
			err := taken.from(source)
			if err == nil && into == "" {
				err = keepBoot(source)
			}
			if err == nil {
				say("the system is here: %d MB in %.0f s, each block checked", taken.done>>20, time.Since(started).Seconds())
				return taken.store.show()
			}
			say("%s: %v", source, err)
			finder.avoid(source, errors.Is(err, errFalse))
		}
		time.Sleep(look)
	}
}

// keepBoot writes down what was booted, for the disk that is installed, and whom to ask to be admitted.
func keepBoot(source *source) error {
	if err := os.MkdirAll(bootFolder, 0o755); err != nil {
		return err
	}
	if err := source.copyBootImage(filepath.Join(bootFolder, "boot.efi")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bootFolder, "neighbour"), []byte(source.byIndex()+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll(credentials, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(credentials, "kubermesh.join"), source.offer.Join, 0o600)
}

// onDisk tells whether a disk has the root already; at first it gives disks a moment.
func onDisk(root rootHash) bool {
	deadline := started.Add(disksFirst)
	for {
		if exists(filepath.Join(byUUID, root.dataUUID())) && exists(filepath.Join(byUUID, root.hashUUID())) {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(look / 5)
	}
}

var started = time.Now()

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// say tells everyone who looks: the consoles, and the journal.
func say(format string, words ...any) {
	line := fmt.Sprintf(format, words...)
	fmt.Println(line)
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	for _, name := range strings.Fields(string(active)) {
		if console, err := os.OpenFile("/dev/"+name, os.O_WRONLY|openFlags, 0); err == nil {
			fmt.Fprintf(console, "\r\n  Kubermesh: %s\r\n", line)
			console.Close()
		}
	}
}

func command(name string, arguments ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %v: %s", name, err, strings.TrimSpace(string(output)))
	}
	return nil
}
