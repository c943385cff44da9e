package vendorfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os/exec"
	"testing"

	"vmscope/internal/guestlab"
)

// TestLZOP unpacks what lzop packs, with all that its files may hold.
func TestLZOP(t *testing.T) {
	guestlab.Need(t, "lzop")
	// Blocks of each kind: one that packs well, one that does not, an odd end.
	want := bytes.Repeat([]byte("kernel "), 100_000)
	for r := rand.NewPCG(1, 2); len(want) < 2<<20+123; {
		want = binary.LittleEndian.AppendUint64(want, r.Uint64())
	}
	for _, args := range [][]string{{"-9"}, {"-1", "--crc32"}, {"-F"}, {"-5", "-P"}} {
		cmd := exec.CommandContext(t.Context(), "lzop", append(args, "-c")...)
		cmd.Stdin = bytes.NewReader(want)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := unpack(packed, 4<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes of %d, %v", args, len(got), len(want), err)
		}
		if _, err := unpack(packed, 1<<20); !errors.Is(err, ErrFormat) {
			t.Errorf("%v: more than may be: %v", args, err)
		}
		for n := range 64 {
			cut := n
			if n > 40 {
				cut = len(packed) * n / 64
			}
			if _, err := unpack(packed[:cut], 4<<20); !errors.Is(err, ErrFormat) {
				t.Errorf("%v: cut at %d of %d: %v", args, cut, len(packed), err)
			}
		}
	}
}
