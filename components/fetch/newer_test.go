package main

import "testing"

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
