package vmscope_test

import (
	"os"
	"testing"

	"vmscope/block/tap"
	"vmscope/internal/guestlab/standin"
	stub "vmscope/vm/gdb"
	"vmscope/vm/qemu"
)

// TestMain does what every program that pauses guests must: the helper that
// makes them run again is this program, started anew.
func TestMain(m *testing.M) {
	qemu.RunResumeHelper()
	stub.RunResumeHelper()
	standin.Main()
	tap.Helper() // what receives a disk's writes is this binary, too
	os.Exit(m.Run())
}
