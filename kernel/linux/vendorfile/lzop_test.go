package vendorfile

import (
	"bytes"
	"errors"
	"os/exec"
	"testing"

	"vmscope/internal/guestlab"
)

// TestLZOP unpacks what lzop packs, and refuses what is cut or too large.
func TestLZOP(t *testing.T) {
	guestlab.Need(t, "lzop")
	want := bytes.Repeat([]byte("kernel "), 300_000)
	cmd := exec.CommandContext(t.Context(), "lzop", "-9", "-c")
	cmd.Stdin = bytes.NewReader(want)
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := unpack(packed, 4<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if _, err := unpack(packed, 1<<20); !errors.Is(err, ErrFormat) {
		t.Errorf("more than may be: %v", err)
	}
	if _, err := unpack(packed[:len(packed)/2], 4<<20); !errors.Is(err, ErrFormat) {
		t.Errorf("cut: %v", err)
	}
}
