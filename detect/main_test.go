package detect

import (
	"os"
	"testing"

	"vmscope/vm/qemu"
)

func TestMain(m *testing.M) {
	qemu.RunResumeHelper() // tests pause guests
	os.Exit(m.Run())
}
