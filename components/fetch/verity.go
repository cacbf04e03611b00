package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
)

// dm-verity's hash device as veritysetup(8) formats it, version 1 (Documentation/admin-guide/device-mapper/verity.rst and
// cryptsetup's wiki, DMVerity): a superblock, and behind it the levels of the tree, the top one first.
const (
	block       = 4096
	digestBytes = sha256.Size
	perBlock    = block / digestBytes
	maxBlocks   = 1 << 24 // 64 GiB
)

// errFalse is returned for what does not have the root hash: who offers it is wrong, or evil.
var errFalse = errors.New("what it sends is not what the root hash says")

type rootHash struct {
	text  string
	bytes [digestBytes]byte
}

var rootHashArgument = regexp.MustCompile(`(?:^|\s)roothash=([0-9a-f]{64})(?:\s|$)`)

func parseRootHash(arguments string) (rootHash, error) {
	found := rootHashArgument.FindStringSubmatch(arguments)
	if found == nil {
		return rootHash{}, errors.New("the kernel's command line has no roothash=")
	}
	root := rootHash{text: found[1]}
	_, err := hex.Decode(root.bytes[:], []byte(found[1]))
	return root, err
}

// dataUUID and hashUUID are the partitions' (systemd-veritysetup-generator(8)): the root hash's first and last 128 bits.
func (root rootHash) dataUUID() string { return uuid(root.text[:32]) }
func (root rootHash) hashUUID() string { return uuid(root.text[32:]) }

func uuid(text string) string {
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// tree has the digest of every block of the root.
type tree struct {
	salt   []byte
	blocks int64
	leaves []byte
}

// parseTree checks all of a hash device against the root hash; errFalse when it is not of that.
func parseTree(device []byte, root rootHash) (*tree, error) {
	if len(device) < block || !bytes.HasPrefix(device, []byte("verity\x00\x00")) {
		return nil, fmt.Errorf("%w: no hashes", errFalse)
	}
	number := func(at int) uint32 { return binary.LittleEndian.Uint32(device[at:]) }
	blocks := binary.LittleEndian.Uint64(device[72:])
	salt := int(binary.LittleEndian.Uint16(device[80:]))
	algorithm := string(bytes.TrimRight(device[32:64], "\x00"))
	if number(8) != 1 || number(12) != 1 || algorithm != "sha256" || number(64) != block || number(68) != block ||
		blocks == 0 || blocks > maxBlocks || salt > 256 {
		return nil, fmt.Errorf("%w: hashes of another kind", errFalse)
	}
	found := &tree{salt: device[88 : 88+salt], blocks: int64(blocks)}
	sizes := []int64{}
	for left := found.blocks; left > 1; {
		left = (left + perBlock - 1) / perBlock
		sizes = append(sizes, left)
	}
	wanted, at := root.bytes[:], int64(block)
	for level := len(sizes) - 1; level >= 0; level-- {
		end := at + sizes[level]*block
		if end > int64(len(device)) {
			return nil, fmt.Errorf("%w: too few hashes", errFalse)
		}
		hashes := device[at:end]
		for number := int64(0); number < sizes[level]; number++ {
			piece := hashes[number*block : (number+1)*block]
			if !found.fits(piece, wanted[number*digestBytes:(number+1)*digestBytes]) {
				return nil, errFalse
			}
		}
		wanted, at = hashes, end
	}
	found.leaves = wanted
	return found, nil
}

// holds tells whether a block of the root is what the tree says.
func (found *tree) holds(number int64, data []byte) bool {
	if number >= found.blocks || len(data) != block {
		return false
	}
	return found.fits(data, found.leaves[number*digestBytes:(number+1)*digestBytes])
}

// endsAt tells whether the root has nothing but zeros from a block on.
func (found *tree) endsAt(number int64) bool {
	if number > found.blocks {
		return false
	}
	zeros := found.digest(make([]byte, block))
	for ; number < found.blocks; number++ {
		if !bytes.Equal(found.leaves[number*digestBytes:(number+1)*digestBytes], zeros) {
			return false
		}
	}
	return true
}

func (found *tree) fits(data, digest []byte) bool {
	return bytes.Equal(found.digest(data), digest)
}

func (found *tree) digest(data []byte) []byte {
	hash := sha256.New()
	hash.Write(found.salt)
	hash.Write(data)
	return hash.Sum(nil)
}
