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

func TestArgumentsOfTheMachineStay(t *testing.T) {
	hash := "roothash=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for line, wanted := range map[string]string{
		"ro console=tty0 " + hash + "\n":                   "",
		"ro console=tty0 " + hash + " nosmp  debug \n":     " nosmp  debug",
		"kubermesh.efi ro " + hash + " console=ttyS1,9600": " console=ttyS1,9600",
		"ro": "",
	} {
		if got := ownArguments(line); got != wanted {
			t.Errorf("%q: %q, not %q", line, got, wanted)
		}
	}
}
