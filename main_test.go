package vmscope_test

import (
	"os"
	"testing"

	"vmscope/vm/qemu"
)

// TestMain does what every program that pauses guests must: the helper that
// makes them run again is this program, started anew.
func TestMain(m *testing.M) {
	qemu.RunResumeHelper()
	os.Exit(m.Run())
}
