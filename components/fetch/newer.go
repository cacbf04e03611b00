package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"debug/pe"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Firmware takes its boot image from whichever neighbour answers first. Where another one has a newer system, the machine starts
// that one's boot image (kexec_file_load(2)) before it installs anything: the newest wins.

const (
	// How this image's version is known.
	versionFile = "/usr/lib/kubermesh/version"
	// How long nobody has this system before another one will do, which may be older.
	alone = 30 * time.Second
	// Says which system was started, and could not be fetched: it is not started again because it is newer.
	triedArgument = " kubermesh.tried="
	// How a statement about a system begins (agent/kmagent/provide.py).
	statementHead = "kubermesh system\n"

	kexecFileLoad = 320        // amd64 (arch/x86/entry/syscalls/syscall_64.tbl)
	rebootKexec   = 0x45584543 // reboot(2), LINUX_REBOOT_CMD_KEXEC
)

// system is what a node of the cluster has signed about the system that it runs.
type system struct {
	Version   string `json:"version"`
	RootHash  string `json:"roothash"`
	BootImage string `json:"boot_image"` // SHA-256
	Join      string `json:"join"`       // SHA-256 of the credential that is offered
	Nonce     string `json:"nonce"`      // what it was asked with
}

// proven checks that a node of the cluster that is offered says what is offered, and has said it now.
//
// Clocks of such machines may be wrong, so it does not matter when the certificate is valid.
func (from *source) proven() (*system, error) {
	offered := from.offer
	bad := errors.New("does not prove that it is a node of its cluster")
	root, _ := pem.Decode([]byte(from.join.Authority))
	leaf, _ := pem.Decode([]byte(offered.Certificate))
	text, found := strings.CutPrefix(offered.Statement, statementHead)
	if root == nil || leaf == nil || !found {
		return nil, bad
	}
	issuer, err := x509.ParseCertificate(root.Bytes)
	if err != nil {
		return nil, bad
	}
	certificate, err := x509.ParseCertificate(leaf.Bytes)
	if err != nil || certificate.IsCA || certificate.CheckSignatureFrom(issuer) != nil {
		return nil, bad
	}
	key, isKey := certificate.PublicKey.(*ecdsa.PublicKey)
	signature, err := base64.StdEncoding.DecodeString(offered.Signature)
	sum := sha256.Sum256([]byte(offered.Statement))
	if !isKey || err != nil || !ecdsa.VerifyASN1(key, sum[:], signature) {
		return nil, bad
	}
	said := &system{}
	joined := sha256.Sum256(offered.Join)
	if json.Unmarshal([]byte(text), said) != nil || said.Nonce != from.nonce || said.RootHash != offered.RootHash ||
		said.Version != offered.Version || said.Join != hex.EncodeToString(joined[:]) {
		return nil, bad
	}
	return said, nil
}

// better returns the neighbour with the newest system of those that prove theirs, if it is newer than this one, of a cluster that
// has this system as well; where nobody could help with this system for a while, the newest of all. `same` are those that have it.
//
// A machine that was not told its cluster believes no proof while it sees two: either of them may be a stranger's.
func (finder *finder) better(own, arguments string, root rootHash, pinned *join, same []*source) *source {
	if pinned == nil && !finder.seesOneCluster() {
		return nil
	}
	lonely := len(same) == 0 && time.Since(finder.helpedAt) > alone
	var best *source
	for address, other := range finder.offers {
		if other.offer.RootHash == root.text || time.Now().Before(finder.avoided[address]) {
			continue
		}
		if isOfAnother(other, pinned) || (!lonely && !isOfOneOf(other, same)) {
			continue
		}
		wasTried := strings.Contains(arguments, triedArgument+other.offer.RootHash)
		if !lonely && (wasTried || compareVersions(other.offer.Version, own) <= 0) {
			continue
		}
		if _, err := other.proven(); err != nil {
			if !finder.unproven[address] {
				finder.unproven[address] = true
				say("%s %v", other, err)
			}
			continue
		}
		if best == nil || compareVersions(other.offer.Version, best.offer.Version) > 0 {
			best = other
		}
	}
	return best
}

func isOfOneOf(other *source, same []*source) bool {
	for _, one := range same {
		if !isOfAnother(other, &one.join) {
			return true
		}
	}
	return false
}

// startInstead starts the system of a neighbour with this machine's own arguments and some `more`; it returns only when that fails. With
// a folder it writes there what it would start.
func (from *source) startInstead(arguments, more, folder string) error {
	said, err := from.proven()
	if err != nil {
		return err
	}
	image, err := from.read("/kubermesh.efi", -maxBootImage)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(image)
	if hex.EncodeToString(sum[:]) != said.BootImage {
		return fmt.Errorf("its boot image is another one: %w", errFalse)
	}
	parts, err := sections(image, ".linux", ".initrd", ".cmdline")
	if err != nil {
		return fmt.Errorf("its boot image: %w", err)
	}
	line := strings.TrimRight(string(parts[".cmdline"]), "\x00\n ") + ownArguments(arguments) + more
	if folder != "" {
		for name, data := range map[string][]byte{"linux": parts[".linux"], "initrd": parts[".initrd"], "cmdline": []byte(line + "\n")} {
			if err := os.WriteFile(filepath.Join(folder, name), data, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	return kexec(parts[".linux"], parts[".initrd"], line)
}

// ownArguments are those that this machine has of its own: firmware, or who runs it, put them behind the boot image's, which end with
// the root hash.
func ownArguments(line string) string {
	found := rootHashArgument.FindStringIndex(line)
	if found == nil {
		return ""
	}
	if more := strings.TrimSpace(line[found[1]:]); more != "" {
		return " " + more
	}
	return ""
}

// sections returns parts of a unified kernel image (UAPI.5, PE/COFF sections).
func sections(image []byte, names ...string) (map[string][]byte, error) {
	file, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for _, name := range names {
		section := file.Section(name)
		if section == nil {
			return nil, fmt.Errorf("it has no section %s", name)
		}
		data, err := section.Data()
		if err != nil {
			return nil, err
		}
		// The file has it in whole pages.
		found[name] = data[:min(len(data), int(section.VirtualSize))]
	}
	return found, nil
}

// kexec starts another kernel in the place of this one (kexec_file_load(2), reboot(2)).
func kexec(kernel, initrd []byte, line string) error {
	kernelFile, err := temporary(kernel)
	if err != nil {
		return err
	}
	defer kernelFile.Close()
	initrdFile, err := temporary(initrd)
	if err != nil {
		return err
	}
	defer initrdFile.Close()
	text := append([]byte(line), 0)
	_, _, failed := syscall.Syscall6(kexecFileLoad, kernelFile.Fd(), initrdFile.Fd(), uintptr(len(text)),
		uintptr(unsafe.Pointer(&text[0])), 0, 0)
	if failed != 0 {
		return fmt.Errorf("the kernel does not start another one: %w", failed)
	}
	// What was said is on its way to a slow console.
	time.Sleep(look)
	return syscall.Reboot(rebootKexec)
}

// temporary returns a file in memory that nobody else finds, open for reading alone: the kernel takes no other.
func temporary(data []byte) (*os.File, error) {
	path := filepath.Join("/run", "kubermesh-"+rand.Text())
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(path)
	return os.Open(path)
}
