// Command kubermesh-fetch gives a machine that was booted from the network its root: it asks the neighbours on all cables,
// takes root and hashes from one that has the very root that the boot image names, block by block and each checked against the
// root hash, and goes on with the next neighbour where one fails. It keeps them in memory (zram), where udev shows them as the
// partitions that systemd-veritysetup(8) waits for. Where a neighbour has a newer system, it starts that one instead.
//
// usage: kubermesh-fetch [-kernel-arguments FILE] [-version FILE] [-pinned FILE] [-into FOLDER]
//
// With -into it writes files `root` and `hashes` there, or `linux`, `initrd` and `cmdline` of what it would start, and changes
// nothing of the machine.
package main

import (
	"context"
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
	// How long neighbours are listened to, from the first one on, before one of them is taken.
	settle = 3 * time.Second
	look   = 500 * time.Millisecond
	// How long to look for a neighbour before that is said, and until it is said again.
	patience = 5 * time.Second
	repeat   = 30 * time.Second
)

func main() {
	arguments := flag.String("kernel-arguments", "/proc/cmdline", "file with the kernel's command line")
	version := flag.String("version", versionFile, "file with the version of this image")
	known := flag.String("pinned", "/run/credentials/@system/kubermesh.join", "file that says which cluster this machine belongs to")
	into := flag.String("into", "", "folder to write to, in the place of memory")
	flag.Parse()
	if err := run(*arguments, *version, *known, *into); err != nil {
		say("this machine cannot boot from the network: %v", err)
		os.Exit(1)
	}
}

func run(arguments, version, known, into string) error {
	text, err := os.ReadFile(arguments)
	if err != nil {
		return err
	}
	root, err := parseRootHash(string(text))
	if err != nil {
		return err
	}
	own, err := os.ReadFile(version)
	if err != nil {
		return err
	}
	pinned, err := readPinned(known)
	if err != nil {
		return err
	}
	finder := newFinder()
	defer finder.close()
	// While disks are looked for, neighbours are heard.
	finder.listen()
	if into == "" && onDisk(root) {
		say("the system is on a disk of this machine")
		return nil
	}
	store, err := newStore(into, root)
	if err != nil {
		return err
	}
	here := &machine{root, strings.TrimSpace(string(own)), string(text), into, pinned, finder, &transfer{root: root, store: store}}
	for {
		done, err := here.turn()
		if done || err != nil {
			return err
		}
		time.Sleep(look)
	}
}

// machine is what this machine was booted with, and what it has got so far.
type machine struct {
	root      rootHash
	version   string
	arguments string
	into      string
	pinned    *join
	finder    *finder
	taken     *transfer
}

// turn looks who is there, and takes from them what is missing; tells whether it has everything.
func (here *machine) turn() (bool, error) {
	if here.into == "" && here.taken.of == nil && onDisk(here.root) {
		say("the system is on a disk of this machine")
		return true, nil
	}
	same := here.finder.keepTo(here.taken.of, here.finder.look(here.root, here.pinned))
	here.finder.complain(here.root, same)
	if !here.finder.settled() {
		return false, nil
	}
	if here.switched(same) {
		return true, nil
	}
	if len(same) == 0 {
		return false, nil
	}
	source, before := same[0], here.taken.done
	err := here.taken.from(source)
	if here.taken.done > before {
		here.finder.helpedAt = time.Now()
	}
	// One with a newer system may have been slower to show up.
	if err == nil && here.switched(here.finder.look(here.root, here.pinned)) {
		return true, nil
	}
	if err == nil && here.into == "" {
		err = here.keepBoot(source)
	}
	if err != nil {
		// What the others offered may be long ago: the next turn asks them.
		here.finder.failed(source, err)
		return false, nil
	}
	say("the system is here: %d MB in %.0f s, each block checked", here.taken.done>>20, time.Since(started).Seconds())
	return true, here.taken.store.show()
}

// switched starts a better system where a neighbour has one; tells whether it did, when that did not end this program.
// Where it fails this system is gone on with, and another one's is the next to be tried.
func (here *machine) switched(same []*source) bool {
	other := here.finder.better(here.version, here.arguments, here.root, here.pinned, same)
	if other == nil {
		return false
	}
	say("%s has version %s, this is %s: starting that", other, printable(other.offer.Version), here.version)
	more := ""
	if compareVersions(other.offer.Version, here.version) < 0 {
		more = triedArgument + here.root.text
	}
	err := other.startInstead(here.arguments, more, here.into)
	if err != nil {
		here.finder.failed(other, err)
	}
	return err == nil
}

// keepBoot writes down what was booted, for the disk that is installed, and whom to ask to be admitted.
func (here *machine) keepBoot(source *source) error {
	digest, err := here.taken.store.bootDigest()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(bootFolder, 0o755); err != nil {
		return err
	}
	if err := source.copyBootImage(here.root, digest, filepath.Join(bootFolder, "boot.efi")); err != nil {
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

// onDisk tells whether this machine lives on a disk that has the root already; it gives disks a moment, as they may come late.
func onDisk(root rootHash) bool {
	if shown.IsZero() {
		// A busy machine is slow to load what disks take.
		_ = command("udevadm", "settle", "--timeout=60")
		shown = time.Now()
	}
	deadline := shown.Add(disksFirst)
	for {
		if disks.hasHome(root.dataUUID()) && exists(filepath.Join(byUUID, root.hashUUID())) {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(look / 5)
	}
}

// When this program was started, and when udev had shown all that it knew of then.
var started, shown = time.Now(), time.Time{}

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
