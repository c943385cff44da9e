package dump

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"

	"vmscope/internal/guestlab"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// packWith has a program pack b.
func packWith(t testing.TB, name string, b []byte) []byte {
	t.Helper()
	if name == "lz4" { // not installed for tests
		var out bytes.Buffer
		z := lz4.NewWriter(&out)
		if _, err := z.Write(b); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	guestlab.Need(t, name)
	cmd := exec.CommandContext(t.Context(), name, "-c")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// TestPackedWhole opens dumps that other programs packed as a whole. Those of lzop are
// read at random if their format allows it.
func TestPackedWhole(t *testing.T) {
	data := streamData()
	low := pattern(1, 300<<10)
	stream, core := makeStream(data), makeELF([]load{{paddr: 0, memsz: 300 << 10, data: low}}, makeNote("QEMU", 0, cpuStateNote()), false)
	for name, undo := range map[string]string{"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "lzop": "lzop -d", "lz4": "unlz4"} {
		t.Run(name, func(t *testing.T) {
			path := file(t, packWith(t, name, stream))
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
				Ranges: []mem.Range{{Start: 0, Size: streamRAM}}, Bytes: map[mem.PA][]byte{0: make([]byte, 1<<20), 1 << 20: data}, CPUs: 2,
			})
			m := open(t, path)
			defer m.Close()
			if _, random := m.(*migration).src.(*unpackedFile); random != (name == "lzop" || name == "gzip") {
				t.Errorf("read at random: %t", random)
			}
			m = open(t, file(t, packWith(t, name, core)))
			defer m.Close()
			same(t, m, 0, low)
			half := packWith(t, name, stream)
			for _, c := range []struct {
				file []byte
				is   error
				word string
			}{
				{packWith(t, name, bytes.Repeat([]byte("text"), 5000)), ErrFormat, undo},
				{packWith(t, name, nil), ErrFormat, undo},
				{half[:len(half)/2], ErrTruncated, "compressed with " + name},
			} {
				if m, err := Open(file(t, c.file)); m != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.word) {
					t.Errorf("%v, %v", m, err)
				}
			}
			broken := packWith(t, name, stream)
			for i := range 64 { // in what is packed, wherever
				broken[len(broken)/4+i*7] ^= 0x5a
			}
			m, err := Open(file(t, broken))
			if name == "lzop" && m != nil {
				defer m.Close()
				_, err = m.ReadPhys(make([]byte, streamRAM), 0)
			}
			if err == nil {
				t.Error("broken, and not told")
			}
		})
	}
}

// FuzzPackedWhole unpacks what was never packed.
func FuzzPackedWhole(f *testing.F) {
	core := makeELF([]load{{paddr: 0x1000, memsz: 4096, data: pattern(1, 4096)}}, nil, false)
	for _, name := range []string{"gzip", "bzip2", "xz", "lzop", "lz4"} {
		f.Add(packWith(f, name, core))
	}
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range packers {
			if bytes.HasPrefix(b, []byte(p.magic)) {
				fuzzOpen(t, b)
			}
		}
	})
}
