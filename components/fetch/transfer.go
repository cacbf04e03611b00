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
	begun bool
	tree  *tree
	done  int64
	shown int64
}

// from takes what is still missing from one neighbour.
func (taken *transfer) from(source *source) error {
	if !taken.begun {
		say("%s has this system, version %s: fetching %d MB", source, printable(source.offer.Version), source.offer.RootBytes>>20)
		say("cluster %s, fingerprint %s", source.cluster(), source.fingerprint())
		taken.begun = true
	} else {
		say("going on from %s, at %d MB", source, taken.done>>20)
	}
	if taken.tree == nil {
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

// isFileSystem tells whether this is how erofs begins (fs/erofs/erofs_fs.h): a false number of levels shows hashes in its place.
func isFileSystem(data []byte) bool {
	return binary.LittleEndian.Uint32(data[1024:]) == 0xE0F5E1E2
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
		if taken.done == 0 && count >= block && !isFileSystem(piece) {
			return fmt.Errorf("%w: no file system", errFalse)
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
