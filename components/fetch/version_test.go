package main

import "testing"

func TestNewestWins(t *testing.T) {
	// The order of UAPI.10, Version Format Specification.
	rising := []string{"0.1.0", "0.1.1", "0.2~rc1", "0.2~rc2", "0.2", "0.2.0", "0.2a", "0.10", "1", "1.0.0a", "1.0.0b", "1.1", "11", "20261127"}
	for left := range rising {
		for right := range rising {
			if got, wanted := compareVersions(rising[left], rising[right]), sign(left-right); got != wanted {
				t.Errorf("%s and %s: %d, not %d", rising[left], rising[right], got, wanted)
			}
		}
	}
	if compareVersions("1.02", "1.2") != 0 {
		t.Error("leading zeros count")
	}
}
