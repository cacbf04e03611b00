package main

import (
	"encoding/binary"
	"fmt"
	"io"
)

const progressStep = 10 // percent

// transfer is the root on its way here: it goes on where it was when another neighbour takes over.
type transfer struct {
	root  rootHash
	store *store
	// Which cluster the last one is of that something was asked of; nothing before it has begun.
	of    *join
	tree  *tree
	done  int64
	shown int64
}

// from takes what is still missing from one neighbour.
func (taken *transfer) from(source *source) error {
	if taken.of == nil {
		say("%s has this system, version %s: fetching %d MB", source, printable(source.offer.Version), source.offer.RootBytes>>20)
	} else {
		say("going on from %s, at %d MB", source, taken.done>>20)
	}
	if taken.of == nil || isOfAnother(source, taken.of) {
		say("cluster %s, fingerprint %s", source.cluster(), source.fingerprint())
		taken.of = &source.join
	}
	// A tree that is too short is one of the same root hash: the root itself shows whether it is whole.
	if taken.done == 0 {
		hashes, err := source.read("/v1/hashes", source.offer.HashBytes)
		if err != nil {
			return err
		}
		tree, err := parseTree(hashes, taken.root)
		if err != nil {
			return err
		}
		if err := taken.store.create(tree.blocks*block, hashes); err != nil {
			return err
		}
		taken.tree = tree
	}
	end := source.offer.RootBytes
	if end%block != 0 || !taken.tree.endsAt(end/block) {
		return fmt.Errorf("%w: %d bytes", errFalse, end)
	}
	if taken.done == end {
		return nil
	}
	stream, err := source.open("/v1/root", taken.done, end)
	if err != nil {
		return err
	}
	defer stream.Close()
	return taken.follow(stream, end)
}

// isFileSystem tells whether this is how erofs begins (fs/erofs/erofs_fs.h), and has so many bytes: a false number of levels shows
// hashes in its place, and a false number of blocks leaves its end out.
func isFileSystem(data []byte, size int64) bool {
	const magic, blockBits, blocks = 1024, 1024 + 12, 1024 + 36
	if binary.LittleEndian.Uint32(data[magic:]) != 0xE0F5E1E2 {
		return false
	}
	return int64(binary.LittleEndian.Uint32(data[blocks:]))<<(data[blockBits]&31) == size
}

// follow writes what comes, a MiB at a time, and no block that is not what the tree says.
func (taken *transfer) follow(stream io.Reader, end int64) error {
	buffer := make([]byte, 1<<20)
	for taken.done < end {
		piece := buffer[:min(int64(len(buffer)), end-taken.done)]
		count, err := io.ReadFull(stream, piece)
		for at := 0; at+block <= count; at += block {
			if !taken.tree.holds(taken.done/block+int64(at/block), piece[at:at+block]) {
				return errFalse
			}
		}
		if taken.done == 0 && count >= block && !isFileSystem(piece, end) {
			return fmt.Errorf("%w: no whole file system", errFalse)
		}
		whole := count / block * block
		if _, failed := taken.store.write(piece[:whole], taken.done); failed != nil {
			return failed
		}
		taken.done += int64(whole)
		if percent := 100 * taken.done / end; percent >= taken.shown+progressStep && percent < 100 {
			taken.shown = percent / progressStep * progressStep
			say("fetching, %d %%", taken.shown)
		}
		if err != nil {
			return fmt.Errorf("it stopped at %d MB: %v", taken.done>>20, err)
		}
	}
	return taken.store.sync()
}
