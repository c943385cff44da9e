package linux

import (
	"errors"
	"testing"

	"vmscope/ctype"
	"vmscope/internal/memtest"
	"vmscope/ksym"
	"vmscope/mem"
)

// holed maps memory from an address on, but for a hole.
type holed struct {
	base mem.VA
	size uint64
	hole mem.VA // a page
}

func (f holed) Translate(va mem.VA) (mem.Mapping, error) {
	off := uint64(va - f.base)
	if off >= f.size || va&^(mem.PageSize-1) == f.hole {
		return mem.Mapping{}, &mem.FaultError{Op: "translate", Addr: uint64(va), Err: mem.ErrNotMapped}
	}
	return mem.Mapping{PA: mem.PA(off), Size: mem.PageSize, Leaf: mem.Leaf{Level: 1}}, nil
}

// blobOf is BTF in which a list_head has that many bytes.
func blobOf(t testing.TB, size uint32) []byte {
	t.Helper()
	b := ctype.NewBuilder()
	b.Define(b.Reserve(ctype.Struct, "list_head", size), nil)
	blob, err := b.Blob()
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// searched searches an image with blobs in it, 64 KiB apart and behind a hole.
func searched(t testing.TB, blobs ...[]byte) (*ctype.Types, error) {
	t.Helper()
	const text = 0xffff800008010000
	info, err := ksym.ParseVMCoreInfo([]byte("OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(_stext)=ffff800008010000\nSIZE(list_head)=16\n\x00"))
	if err != nil {
		t.Fatal(err)
	}
	image := make([]byte, 4<<20)
	for i, blob := range blobs {
		copy(image[1<<20-8+i<<16:], blob) // the first lies across what is read at a time
	}
	k := &Kernel{Text: text, info: info}
	phys := &memtest.Bytes{Data: image}
	v := &View{Kernel: k, Phys: phys, Mem: mem.NewSpace("kernel", phys, holed{text, uint64(len(image)), text + 3*mem.PageSize})}
	return k.findBTF(v)
}

// TestFindBTF finds the one BTF that is of the kernel.
func TestFindBTF(t *testing.T) {
	right, other := blobOf(t, 16), blobOf(t, 8)
	header := right[:24]
	for name, blobs := range map[string][][]byte{"one": {right}, "beside another": {other, right}, "beside what is none": {header, other, right}} {
		types, err := searched(t, blobs...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if l, err := types.Lookup("list_head"); err != nil || l.Size() != 16 {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	for name, blobs := range map[string][][]byte{"none": nil, "of another kernel": {other}, "cut": {right[:len(right)-12]}} {
		if types, err := searched(t, blobs...); types != nil || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if types, err := searched(t, right, right); types != nil || !errors.Is(err, mem.ErrInconsistent) {
		t.Errorf("two: %v", err)
	}
}

// FuzzFindBTF has the guest put anything into its image.
func FuzzFindBTF(f *testing.F) {
	f.Add(blobOf(f, 16))
	f.Add(blobOf(f, 8))
	f.Fuzz(func(t *testing.T, b []byte) {
		if types, err := searched(t, b[:min(len(b), 1<<16)]); (types == nil) == (err == nil) {
			t.Errorf("%v, %v", types, err)
		}
	})
}
