package linux

import (
	"encoding/binary"
	"os"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"vmscope/arch/x86"
	"vmscope/ctype"
	"vmscope/internal/memtest"
	"vmscope/mem"
)

// flat is an address space in which virtual addresses are physical ones.
type flat struct{}

func (flat) Translate(va mem.VA) (mem.Mapping, error) {
	return mem.Mapping{PA: mem.PA(va), Size: mem.PageSize}, nil
}

// stockTypes are the types of Debian's 6.1 cloud kernel.
var stockTypes = sync.OnceValues(func() (*ctype.Types, error) {
	b, err := os.ReadFile("../../ctype/testdata/bookworm-cloud-vmlinux.btf.zst")
	if err != nil {
		return nil, err
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if b, err = r.DecodeAll(b, nil); err != nil {
		return nil, err
	}
	return ctype.Parse(b)
})

// stockKernel is a kernel of which nothing is known but its types.
func stockKernel(t testing.TB) *Kernel {
	t.Helper()
	types, err := stockTypes()
	if err != nil {
		t.Fatal(err)
	}
	return &Kernel{Types: types, Mode: x86.Level4, port: amd64{}}
}

func viewOf(k *Kernel, phys mem.PhysReader) *View {
	return &View{Kernel: k, Phys: phys, Mem: mem.NewSpace("kernel", phys, flat{})}
}

// world is a little guest memory, made by hand.
type world struct {
	t    testing.TB
	v    *View
	b    []byte
	next mem.VA
}

func newWorld(t testing.TB) *world {
	b := make([]byte, 2<<20)
	return &world{t: t, b: b, v: viewOf(stockKernel(t), &memtest.Bytes{Data: b}), next: mem.PageSize}
}

// alloc makes room for an object.
func (w *world) alloc(n uint64) mem.VA {
	at := w.next
	w.next += mem.VA(n+63) &^ 63
	return at
}

// layoutOf binds a layout or fails.
func layoutOf[T any](w *world) *T {
	w.t.Helper()
	l, err := layout[T](w.v.Kernel)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// put writes an integer field of the object at base.
func (w *world) put(base mem.VA, f ctype.Field, v uint64) {
	at := f.At(base)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if f.BitSize != 0 {
		old := w.b[at] &^ byte((1<<f.BitSize-1)<<f.BitOffset)
		w.b[at] = old | byte(v<<f.BitOffset)
		return
	}
	copy(w.b[at:uint64(at)+f.Size()], b[:])
}

func (w *world) put64(at mem.VA, v uint64) { binary.LittleEndian.PutUint64(w.b[at:], v) }

func (w *world) bytes(at mem.VA, s string) { copy(w.b[at:], s) }

// list links nodes into a circular list that hangs off head.
func (w *world) list(head mem.VA, nodes ...mem.VA) {
	all := append([]mem.VA{head}, nodes...)
	for i, n := range all {
		next := all[(i+1)%len(all)]
		w.put64(n, uint64(next))
		w.put64(next+8, uint64(n))
	}
}

// chain links nodes into a hash chain whose first pointer is at head.
func (w *world) chain(head mem.VA, end uint64, nodes ...mem.VA) {
	from := head
	for _, n := range nodes {
		w.put64(from, uint64(n))
		w.put64(n+8, uint64(from))
		from = n
	}
	w.put64(from, end)
}

// transcript writes down what a memory answers: the seed of a fuzz target that
// plays memory.
type transcript struct {
	mem.PhysReader
	answers []byte
}

func (tr *transcript) ReadPhys(p []byte, pa mem.PA) (int, error) {
	n, err := tr.PhysReader.ReadPhys(p, pa)
	tr.answers = append(tr.answers, p[:n]...)
	return n, err
}

// answers is what the world answers while f looks at it.
func (w *world) answers(f func(v *View)) []byte {
	tr := &transcript{PhysReader: w.v.Phys}
	f(viewOf(w.v.Kernel, tr))
	return tr.answers
}
