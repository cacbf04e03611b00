// Command sealdb rewrites one of containerd's bolt databases so that the same content gives the same bytes:
// keys in order, no free pages, and every time stamp set to one moment.
//
// usage: sealdb SOURCE TARGET SECONDS-SINCE-1970
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Keys under which containerd's metadata store and its snapshotters keep time.Time (core/metadata/boltutil).
var timeKeys = map[string]bool{"createdat": true, "updatedat": true}

// Label whose value is the moment at which the object was made a root of garbage collection.
const gcRoot = "containerd.io/gc.root"

func main() {
	if len(os.Args) != 4 {
		fail(fmt.Errorf("usage: sealdb SOURCE TARGET SECONDS-SINCE-1970"))
	}
	seconds, err := strconv.ParseInt(os.Args[3], 10, 64)
	fail(err)
	fail(seal(os.Args[1], os.Args[2], time.Unix(seconds, 0).UTC()))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "sealdb:", err)
		os.Exit(1)
	}
}

func seal(source, target string, moment time.Time) error {
	from, err := bolt.Open(source, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := bolt.Open(target, 0o644, &bolt.Options{NoFreelistSync: true, NoSync: true})
	if err != nil {
		return err
	}
	defer to.Close()
	err = from.View(func(read *bolt.Tx) error {
		return read.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			return copyBucket(bucket, to, [][]byte{name}, moment)
		})
	})
	if err != nil {
		return err
	}
	return to.Sync()
}

// A bucket is a transaction: bbolt writes the buckets of one transaction in the random order of a Go map.
func copyBucket(from *bolt.Bucket, to *bolt.DB, path [][]byte, moment time.Time) error {
	err := to.Update(func(write *bolt.Tx) error {
		made, err := makeBucket(write, path)
		if err != nil {
			return err
		}
		if err := made.SetSequence(from.Sequence()); err != nil {
			return err
		}
		return copyValues(from, made, moment)
	})
	if err != nil {
		return err
	}
	return from.ForEachBucket(func(key []byte) error {
		below := append(append([][]byte{}, path...), key)
		return copyBucket(from.Bucket(key), to, below, moment)
	})
}

func makeBucket(write *bolt.Tx, path [][]byte) (*bolt.Bucket, error) {
	made, err := write.CreateBucketIfNotExists(path[0])
	for _, name := range path[1:] {
		if err != nil {
			return nil, err
		}
		made, err = made.CreateBucketIfNotExists(name)
	}
	return made, err
}

func copyValues(from, to *bolt.Bucket, moment time.Time) error {
	return from.ForEach(func(key, value []byte) error {
		if value == nil {
			return nil
		}
		sealed, err := sealValue(string(key), value, moment)
		if err != nil {
			return err
		}
		return to.Put(key, sealed)
	})
}

func sealValue(key string, value []byte, moment time.Time) ([]byte, error) {
	switch {
	case timeKeys[key]:
		return moment.MarshalBinary()
	case key == gcRoot:
		return []byte(moment.Format(time.RFC3339)), nil
	default:
		return value, nil
	}
}
