package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWhoFailedIsTakenLast(t *testing.T) {
	finder := newFinder()
	liar, slow, good := &source{address: "fe80::1%a"}, &source{address: "fe80::2%a"}, &source{address: "fe80::3%b"}
	finder.failed(liar, errFalse)
	finder.failed(slow, os.ErrDeadlineExceeded)
	found := []*source{liar, slow, good}
	finder.order(found)
	if found[0] != good || found[1] != liar || found[2] != slow {
		t.Errorf("%v", found)
	}
	now := time.Now()
	if !finder.avoided[liar.address].After(now.Add(avoidFor)) || finder.avoided[liar.address].After(now.Add(alone)) {
		t.Error("one that sent something false is avoided for longer, but asked again before an older system is taken")
	}
}

func TestWhoFailedIsTakenLastUnderAnotherAddress(t *testing.T) {
	finder := newFinder()
	finder.failed(&source{address: "fe80::1%a"}, os.ErrDeadlineExceeded)
	again, good := &source{address: "fe80::2%a"}, &source{address: "fe80::3%b"}
	found := []*source{again, good}
	finder.order(found)
	if found[0] != good {
		t.Errorf("%v", found)
	}
}

func TestWhoCannotBeAskedIsAvoidedFromThenOn(t *testing.T) {
	finder := newFinder()
	begin := time.Now()
	finder.renew([]string{"::1%lo", "::1%none"})
	for _, address := range []string{"::1%lo", "::1%none"} {
		if finder.avoided[address].Before(begin.Add(askAgain)) || finder.offers[address] != nil {
			t.Errorf("%s: %v", address, finder.avoided[address])
		}
	}
}

func TestTheClusterThatWasShownIsKeptTo(t *testing.T) {
	finder := newFinder()
	shop, lab := newCluster(t, "shop").offers(t, "1.0", "aa"), newCluster(t, "lab").offers(t, "1.0", "aa")
	both := []*source{lab, shop}
	for name, one := range map[string]struct {
		shown  *join
		same   []*source
		helped time.Duration
		wanted []*source
	}{
		"nothing is shown":         {nil, both, 0, both},
		"both are there":           {&shop.join, both, 2 * alone, both[1:]},
		"it is gone for a moment":  {&shop.join, both[:1], 0, nil},
		"it did not help for long": {&shop.join, both[:1], 2 * alone, both[:1]},
		"nobody is there":          {&shop.join, nil, 2 * alone, nil},
	} {
		finder.helpedAt = time.Now().Add(-one.helped)
		if found := finder.keepTo(one.shown, one.same); !slices.Equal(found, one.wanted) {
			t.Errorf("%s: %v", name, found)
		}
	}
}

func TestWhoWasGoneIsAskedAgain(t *testing.T) {
	finder := newFinder()
	one := &source{address: "fe80::1%a"}
	finder.failed(one, errFalse)
	finder.heard[one.address] = time.Now().Add(-2 * forget)
	if len(finder.present(time.Now())) != 0 || !finder.avoided[one.address].IsZero() {
		t.Error("still avoided")
	}
}

func TestTheBootImageIsTheRootsOwn(t *testing.T) {
	root, err := parseRootHash("roothash=" + strings.Repeat("ab", 32))
	if err != nil {
		t.Fatal(err)
	}
	image := []byte("MZ kernel roothash=" + root.text + "\x00")
	trial := []byte("MZ kernel roothash=" + strings.Repeat("0", 64) + "\x00")
	if bootImageDigest(image, root) != bootImageDigest(trial, root) {
		t.Error("the root hash counts, which the root cannot know")
	}
	other := []byte(strings.Replace(string(image), "kernel", "virus!", 1))
	if bootImageDigest(other, root) == bootImageDigest(image, root) {
		t.Error("another kernel with the right root hash is taken for the root's own")
	}
}
