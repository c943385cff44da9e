package dump

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// wholeDumps are small dumps of each format that says how long it is.
func wholeDumps(t testing.TB) map[string][]byte {
	t.Helper()
	pages, _, _ := kdumpGuest()
	kdump := makeKdump(t, kdumpSpec{frames: 1013, pages: pages, codecs: allCodecs})
	pv, _ := pvCore()
	frames, body, _ := xenDomain()
	changed, _ := changedStream(t)
	mapped, _ := mappedStream(0, 0, 64<<10, 4096)
	memory := map[mem.PA][]byte{0: pattern(1, 16<<12), 1 << 20: pattern(2, 8<<12)}
	bundle, _, _ := testBundle(t, nil)
	return map[string][]byte{
		"ELF core":     makeELF([]load{{paddr: 0, memsz: 64 << 10, data: pattern(1, 64<<10)}}, makeNote("QEMU", 0, cpuStateNote()), false),
		"bundle":       bundle,
		"kdump":        kdump,
		"flattened":    flatten(kdump, 5000),
		"LiME":         makeLime(1<<20, pattern(1, 16<<12)),
		"AVML":         makeAVML(1<<20, pattern(1, 16<<12)),
		"Xen's, HVM":   makeXenCore(xenMagicHVM, frames, body),
		"Xen's, PV":    pv,
		"VirtualBox's": makeVBox(0x10006, []vm.Registers{{}}, memory, 0, 1<<20),
		"Windows', 1":  makeWindows(1, memory, 0, 1<<20),
		"Windows', 5":  makeWindows(5, memory, 0, 1<<20),
		"stream":       changed,
		"a mapped one": mapped,
		"libvirt":      saved(t, changed, 0),
		"libvirt gzip": saved(t, changed, 1),
		"libvirt zstd": saved(t, changed, 5),
		"savevm":       makeQcow(changed),
	}
}

// TestCut: of a dump that ends early, wherever it does, the error names the file and a
// place in it, and says what to do. What of it opens all the same has lost its end only.
func TestCut(t *testing.T) {
	for name, b := range wholeDumps(t) {
		t.Run(name, func(t *testing.T) {
			path := file(t, b)
			whole := open(t, file(t, b))
			defer whole.Close()
			place := regexp.MustCompile(`(byte|offset|has) (0x)?[0-9a-f]+`)
			for i := range 60 {
				size := len(b) * (i + 1) / 61
				if i < 25 { // among the headers
					size = min(size, 17*(i+3))
				}
				if err := os.Truncate(path, 0); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, b[:size], 0o600); err != nil {
					t.Fatal(err)
				}
				m, err := Open(path)
				if err == nil { // a stream without its end says so; an image may lack what fills its last cluster
					if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, "its end was not found") {
						if name != "savevm" || len(b)-size > 4096 {
							t.Errorf("cut to %d bytes of %d it opens as %q", size, len(b), l)
						}
						vmtest.Same(t, whole, m)
					}
					m.Close()
					continue
				}
				if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), strconv.Quote(path)) {
					t.Errorf("cut to %d bytes of %d: %v", size, len(b), err)
				}
				if errors.Is(err, ErrTruncated) && (!strings.Contains(err.Error(), "copy it again") || !place.MatchString(err.Error()) && !strings.Contains(err.Error(), "end is missing")) {
					t.Errorf("cut to %d bytes of %d: %v", size, len(b), err)
				}
				m, perr := Open(path, AllowTruncated())
				if (perr == nil) != errors.Is(err, ErrPartial) {
					t.Errorf("cut to %d bytes of %d: %v, and what is there: %v", size, len(b), err, perr)
				}
				if perr == nil {
					m.Close()
				}
			}
		})
	}
}

// TestFlipped: whatever a bit of a dump is, it opens or is refused, and what is read of
// it is read or refused.
func TestFlipped(t *testing.T) {
	for name, b := range wholeDumps(t) {
		t.Run(name, func(t *testing.T) {
			for i := range 60 {
				x := bytes.Clone(b)
				at := len(x) * i / 60
				if i < 40 { // in the headers
					at = min(at, 7*i)
				}
				x[at] ^= 0x81
				fuzzOpen(t, x)
			}
		})
	}
}

// patient is a context that ends when it was asked so often.
type patient struct {
	context.Context
	left int
}

func (p *patient) Err() error {
	if p.left--; p.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestOpenEnds: a dump that has to be read through is not once the context has ended, and what was opened
// can be read all the same.
func TestOpenEnds(t *testing.T) {
	for name, b := range wholeDumps(t) {
		path, all := file(t, b), &patient{t.Context(), 1 << 30}
		m, err := Open(path, During(all, func(uint64, uint64) {}))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		asked := 1<<30 - all.left
		all.left = 0
		if _, err := m.ReadPhys(make([]byte, 8), m.(mem.Ranger).Ranges()[0].Start); errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		m.Close()
		for n := range asked {
			m, err := Open(path, During(&patient{t.Context(), n}, func(uint64, uint64) {}))
			if m != nil || !errors.Is(err, context.Canceled) || errors.Is(err, ErrTruncated) || errors.Is(err, ErrFormat) {
				t.Errorf("%s: ended at question %d of %d: %v, %v", name, n, asked, m, err)
			}
		}
		if isPaged(b) && asked < 3 {
			t.Errorf("%s: asked %d times", name, asked)
		}
	}
}
