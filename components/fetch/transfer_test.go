package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
)

// image is how erofs begins, and the tree over it.
func image(t *testing.T, blocks uint32) ([]byte, *tree) {
	t.Helper()
	data := make([]byte, 4*block)
	binary.LittleEndian.PutUint32(data[1024:], 0xE0F5E1E2)
	data[1024+12] = 12
	binary.LittleEndian.PutUint32(data[1024+36:], blocks)
	found := &tree{blocks: int64(len(data) / block)}
	for at := 0; at < len(data); at += block {
		found.leaves = append(found.leaves, found.digest(data[at:at+block])...)
	}
	return data, found
}

func TestARootThatSaysOfItselfThatItIsLongerIsNotTaken(t *testing.T) {
	for blocks, wanted := range map[uint32]error{4: nil, 5: errFalse, 3: errFalse} {
		data, found := image(t, blocks)
		file, err := os.Create(t.TempDir() + "/root")
		if err != nil {
			t.Fatal(err)
		}
		taken := &transfer{tree: found, store: &store{data: file}}
		if err := taken.follow(bytes.NewReader(data), int64(len(data))); !errors.Is(err, wanted) {
			t.Errorf("%d blocks: %v", blocks, err)
		}
		if wanted != nil && taken.done != 0 {
			t.Errorf("%d blocks: %d bytes are kept", blocks, taken.done)
		}
	}
}
