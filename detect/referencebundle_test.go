package detect

import (
	"bytes"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
	"vmscope/vm/dump"
)

// extraMachine is a bundle with but bytes, and something beside them.
type extraMachine struct {
	*memtest.Bytes
	extra []byte
}

func (extraMachine) Close() error      { return nil }
func (extraMachine) About() dump.About { return dump.About{} }
func (m extraMachine) Extra() []byte   { return m.extra }

// TestReferenceInBundle: what a reference knew of bytes that are others now comes
// back by what a bundle has.
func TestReferenceInBundle(t *testing.T) {
	data := pattern(3*mem.PageSize + 100)
	was := bytes.Clone(data)
	l, ref := lookAt(base, data), NewReference()
	ref.runs = make(map[runKey]*run)
	keys := []runKey{{Part: "text", Kind: "module", Name: "a\xff", Start: base, Size: uint64(len(data)), Load: 7}}
	look := func(l *Look, r *Reference) *run {
		t.Helper()
		runs, err := r.compare(t.Context(), l, "text", keys)
		if err != nil || len(runs) != 1 {
			t.Fatalf("%d runs, %v", len(runs), err)
		}
		return runs[0]
	}
	if extra, err := ref.differences(ref.clone()); extra != nil || err != nil {
		t.Errorf("a reference that knows nothing: %q, %v", extra, err)
	}
	m := look(l, ref)
	m.found(2 * mem.PageSize)
	ref.keep([]*run{m})
	data[mem.PageSize+5] ^= 0xff
	data[len(data)-1] ^= 0xff

	known := ref.clone()
	looked := known.clone()
	look(l, looked).found(0) // in the look itself: none of what was known
	extra, err := known.differences(looked)
	if err != nil || len(extra) > 3*mem.PageSize {
		t.Fatalf("%d bytes for two pages, %v", len(extra), err)
	}

	far := lookAt(base, bytes.Clone(data))
	far.Machine = extraMachine{extra: extra}
	again := NewReference()
	again.runs = make(map[runKey]*run)
	if err := again.restore(far.View); err != nil {
		t.Fatal(err)
	}
	m = look(far, again)
	if m.first || !bytes.Equal(m.was, was) || len(m.now) != 2 || m.now[1] == nil || m.now[3] == nil || len(m.odd) != 1 || !m.odd[2] {
		t.Errorf("first %v, was what it was %v, %d pages differ, odd %v", m.first, bytes.Equal(m.was, was), len(m.now), m.odd)
	}
}

// FuzzRestore: what a bundle has beside its memory may be anybody's.
func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"format":1,"runs":[{"part":"text","kind":"kernel","start":"0x10000","size":8192,"name":"YQ==","odd":[1],"was":{"0":"AAAA","1":"/w=="}}]}`))
	f.Add([]byte(`{"format":1,"runs":[{"part":"text","start":"0x10000","size":100,"was":{"0":"AAAA","-1":"/w=="}}]}`))
	f.Add([]byte(`{"format":2}`))
	data := pattern(3 * mem.PageSize)
	f.Fuzz(func(t *testing.T, extra []byte) {
		l := lookAt(base, data)
		l.Machine = extraMachine{extra: extra}
		r := NewReference()
		r.runs = make(map[runKey]*run)
		if err := r.restore(l.View); err != nil {
			return
		}
		for k, m := range r.runs {
			if uint64(len(m.was)) != k.Size || k.Size > uint64(len(data)) {
				t.Fatalf("a run of %d bytes: %+v", len(m.was), k)
			}
		}
	})
}
