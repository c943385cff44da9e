package vendorfile

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/mem"
)

// TestKernelFiles reads the kernels of the lab.
func TestKernelFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches kernels; not under -short")
	}
	for _, name := range guestlab.Kernels() {
		t.Run(name, func(t *testing.T) {
			file, err := guestlab.Fetch(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(file.Image())
			if err != nil {
				t.Fatal(err)
			}
			k, err := ParseKernel(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if at, ok := k.Linked("_stext"); !ok || at < 0xffffffff81000000 || at > 0xffffffff81001000 {
				t.Errorf("_stext is linked at %#x, %v", uint64(at), ok)
			}
			nested := widened(t, k)
			if newer := name == "trixie-cloud" || name == "sid-cloud"; (nested > 0) != newer {
				t.Errorf("%d alternatives are nested", nested)
			}
			was := bytes.Clone(k.Section(".text").Data)
			for _, slide := range []uint64{0x1e00000, 0} {
				if err := k.Relocate(slide); err != nil {
					t.Fatal(err)
				}
				if same := bytes.Equal(was, k.Section(".text").Data); same != (slide == 0) {
					t.Errorf("moved by %#x its text is as it was: %v", slide, same)
				}
				sites, err := k.Sites()
				if err != nil {
					t.Fatal(err)
				}
				text, n := k.Section(".text"), make(map[Kind]int)
				for _, s := range sites.list {
					if s.At >= text.Addr && s.At < text.End() {
						n[s.Kind]++
					}
				}
				for _, kind := range []Kind{Alternative, Lock, Return, Retpoline, Ftrace, JumpLabel, StaticCall} {
					if n[kind] < 100 {
						t.Errorf("%d places of kind %v", n[kind], kind)
					}
				}
				t.Logf("build id %s, %d places: %v", k.ID, sites.Len(), n)
			}
		})
	}
}

// widened makes alternatives as long as another one of the same place, as the
// kernel does where they are nested, and counts those that this makes longer.
func widened(t *testing.T, k *Kernel) (longer int) {
	s, l := k.Section(".altinstructions"), k.tables
	length := make(map[mem.VA][]uint8) // by place
	entries(s.Addr, s.Data, l.Alt, func(at mem.VA, b []byte) {
		code := away(at, b, l.AltInstr.Offset)
		length[code] = append(length[code], b[l.AltLen.Offset])
	})
	entries(s.Addr, s.Data, l.Alt, func(at mem.VA, b []byte) {
		n, most := b[l.AltLen.Offset], slices.Max(length[away(at, b, l.AltInstr.Offset)])
		if n < most {
			longer++
		}
		at += mem.VA(l.AltLen.Offset)
		if k.Widened(at, most) != (n < most) || k.Widened(at, most+1) || k.Widened(at, 0) || k.Widened(at+1, most) {
			t.Errorf("an alternative of %d bytes where the longest has %d", n, most)
		}
	})
	return longer
}
