package ksym

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"vmscope/mem"
)

// known reports whether an error says which class of failure it is.
func known(err error) bool {
	for _, class := range []error{mem.ErrInconsistent, mem.ErrNotMapped, mem.ErrNoRAM, mem.ErrUnreachable, ErrNoSymbol} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

func FuzzVMCoreInfo(f *testing.F) {
	f.Add([]byte(coreInfoText("6.1.0-50-cloud-amd64", "SYMBOL(_stext)=ffffffff9a000000\nNUMBER(phys_base)=-5\n")))
	f.Add([]byte(coreInfoText("7.2", "SIZE(page)=64\nSIZE(page)=72\n=\nx\n\n==\nNUMBER(k)=0xffff800007e00000")))
	f.Add([]byte("OSRELEASE=\nSYMBOL(=\nSYMBOL()=)\na=b\nc=d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseVMCoreInfo(b)
		if (c == nil) != (err != nil) || err != nil && !known(err) {
			t.Fatalf("%v, %v", c, err)
		}
		page := make([]byte, 2*mem.PageSize)
		n := copy(page, b)
		ram, _ := mem.NewRAM(mem.Segment{PA: 0x1000, Data: page})
		found, ferr := FindVMCoreInfo(t.Context(), ram, ram.Ranges())
		if ferr != nil {
			t.Fatal(ferr)
		}
		if c == nil {
			return
		}
		if len(c.Text()) > coreInfoMax || !bytes.HasPrefix(b, []byte(c.Text())) {
			t.Fatal("the text is not the start of the input")
		}
		// What Parse takes at the start of a page, Find finds.
		if n == len(b) && (len(found) == 0 || found[0].Text() != c.Text() || found[0].Places[0] != 0x1000) {
			t.Fatalf("found %v", found)
		}
		// A text parses as itself.
		if again, err := ParseVMCoreInfo([]byte(c.Text())); err != nil || again.Text() != c.Text() || len(again.values) != len(c.values) {
			t.Fatalf("again: %v", err)
		}
		for k, v := range c.values {
			if got, ok := c.Value(k); !ok || got != v {
				t.Fatalf("%q is %q, %v", k, got, ok)
			}
		}
		c.Kallsyms()
		c.Symbol("_stext")
		c.Number("phys_base")
		c.KernelOffset()
	})
}

// fuzzHead is how many bytes of the input say where the blocks are.
const fuzzHead = 12

func fuzzInput(e encoded) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(e.p.NumSyms-e.base))
	for _, a := range []mem.VA{e.p.Names, e.p.TokenTable, e.p.TokenIndex, e.p.Offsets, e.p.RelativeBase} {
		if a != 0 {
			a -= e.base
		}
		b = binary.LittleEndian.AppendUint16(b, uint16(a))
	}
	return append(b, e.bytes...)
}

// FuzzKallsyms lets the guest write the blocks of a table and say where they
// are. Whatever table comes out of it obeys its own rules.
func FuzzKallsyms(f *testing.F) {
	for i := range layouts {
		s := layoutSpec(i, 300, 0)
		f.Add(fuzzInput(s.encode()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < fuzzHead || len(b) > 1<<16 {
			return
		}
		e := encoded{bytes: b[fuzzHead:]}
		e.base = kernel64 + 1<<20
		var at [6]mem.VA
		for i := range at {
			at[i] = e.base + mem.VA(binary.LittleEndian.Uint16(b[2*i:]))
		}
		e.p = Places{at[0], at[1], at[2], at[3], at[4], at[5]}
		if e.p.RelativeBase == e.base {
			e.p.RelativeBase = 0
		}
		read := 0
		tab, err := At(func(p []byte, va mem.VA) (int, error) {
			if read += len(p); read > 4*len(b)+4*maxTokens+10*maxSyms {
				t.Fatalf("reads %d bytes", read)
			}
			return e.read(p, va)
		}, e.p)
		if (tab == nil) != (err != nil) || err != nil && !known(err) {
			t.Fatalf("%v, %v", tab, err)
		}
		if tab == nil {
			return
		}
		if tab.Len() > len(b) {
			t.Fatalf("%d symbols of %d bytes", tab.Len(), len(b))
		}
		obeys(t, tab)
	})
}

// obeys checks what holds for any table.
func obeys(t *testing.T, tab *Table) {
	verr := tab.Verify()
	n := 0
	for s := range tab.All() {
		n++
		if len(s.Name) >= maxName {
			t.Fatalf("a name of %d bytes", len(s.Name))
		}
		got, err := tab.Lookup(s.Name)
		// Where the index by name lies, a name may stay hidden.
		if verr == nil && err != nil {
			t.Fatalf("Lookup(%q): %v", s.Name, err)
		}
		if err == nil && got.Name != s.Name {
			t.Fatalf("Lookup(%q) = %+v", s.Name, got)
		}
		got, off, err := tab.Nearest(s.Addr)
		if err == nil && (uint64(got.Addr)+off != uint64(s.Addr) || got.Absolute) {
			t.Fatalf("Nearest(%#x) = %+v, %#x", uint64(s.Addr), got, off)
		}
		if err != nil && !errors.Is(err, ErrNoSymbol) {
			t.Fatal(err)
		}
		if n > 64 { // the rest is alike
			break
		}
	}
	if _, err := tab.Lookup("_stext"); err != nil {
		t.Fatal("a table without _stext")
	}
}

// scripted is memory whose content is the answers of the fuzz input: the n-th
// new page that is read is the n-th piece of it, whatever its address.
type scripted struct {
	script []byte
	pages  map[mem.PA]*[mem.PageSize]byte
	bytes  int
}

func (s *scripted) ReadPhys(p []byte, pa mem.PA) (n int, err error) {
	s.bytes += len(p)
	for n < len(p) {
		at := pa + mem.PA(n)
		page := s.pages[at&^(mem.PageSize-1)]
		if page == nil {
			page = new([mem.PageSize]byte)
			if len(s.script) == 0 {
				return n, &mem.FaultError{Op: "read", Addr: uint64(at), Err: mem.ErrNoRAM}
			}
			// An answer is its length and as many bytes, repeated.
			k := min(int(s.script[0])*8, len(s.script)-1)
			answer := s.script[1 : 1+k]
			s.script = s.script[1+k:]
			for i := 0; k > 0 && i < len(page); i += k {
				copy(page[i:], answer)
			}
			s.pages[at&^(mem.PageSize-1)] = page
		}
		n += copy(p[n:], page[at%mem.PageSize:])
	}
	return n, nil
}

// FuzzFind lets the guest answer each read as it likes.
func FuzzFind(f *testing.F) {
	e := layoutSpec(8, 2200, 0).encode()
	var script []byte
	for b := e.bytes; len(b) > 0; {
		n := min(len(b), 255*8)
		script = append(append(script, byte((n+7)/8)), b[:n]...)
		b = b[n:]
	}
	f.Add(script)
	tokens := e.bytes[e.p.TokenTable-e.base : e.p.TokenIndex-e.base+indexSize]
	f.Add(append([]byte{byte(len(tokens)/8 + 1)}, tokens...))
	f.Add(append([]byte{3}, digits...))
	f.Add(append([]byte{3}, coreInfoText("6.1", "")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		s := &scripted{script: b, pages: make(map[mem.PA]*[mem.PageSize]byte)}
		extents := []mem.Range{{Start: 16 << 20, Size: 64 << 10}, {Start: ^mem.PA(0) - 8191, Size: 8191}, {Start: 5, Size: 9000}}
		found, err := Find(t.Context(), s, extents)
		if err != nil && !known(err) || len(found) > maxFound {
			t.Fatalf("%v, %v", found, err)
		}
		for _, x := range found {
			obeys(t, x.Table)
		}
		infos, err := FindVMCoreInfo(t.Context(), s, extents)
		if err != nil && !known(err) || len(infos) > maxCoreInfos {
			t.Fatalf("%v, %v", infos, err)
		}
		// Every run of digits costs two pages, each sound token table a
		// window; both are bounded.
		if s.bytes > 1<<28 {
			t.Fatalf("reads %d bytes", s.bytes)
		}
	})
}

func FuzzModuleSymbols(f *testing.F) {
	sym, str, typ := moduleTable(24)
	f.Add(sym, str, typ, false)
	sym, str, typ = moduleTable(16)
	f.Add(sym, str, typ, true)
	f.Fuzz(func(t *testing.T, sym, str, typ []byte, small bool) {
		size, entry := 8, 24
		if small {
			size, entry = 4, 16
		}
		out, err := ParseModuleSymbols(sym, str, typ, size)
		if err != nil && !known(err) || len(out) > len(sym)/entry {
			t.Fatalf("%d symbols, %v", len(out), err)
		}
		for _, s := range out {
			if s.Name == "" || len(s.Name) > maxName || !bytes.Contains(str, append([]byte(s.Name), 0)) {
				t.Fatalf("%+v", s)
			}
		}
		l := NewList(out)
		for s := range l.All() {
			if got, err := l.Lookup(s.Name); err != nil || got.Name != s.Name || got.Addr > s.Addr {
				t.Fatalf("Lookup(%q) = %+v, %v", s.Name, got, err)
			}
			if got, off, err := l.Nearest(s.Addr); err == nil && uint64(got.Addr)+off != uint64(s.Addr) {
				t.Fatalf("Nearest(%#x) = %+v, %#x", uint64(s.Addr), got, off)
			}
		}
	})
}

func FuzzSystemMap(f *testing.F) {
	f.Add([]byte("0000000000000000 D __per_cpu_start\nffffffff81000000 T _stext\n"))
	f.Add([]byte("ffffffffc0000000 t f\t[m]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseSystemMap(bytes.NewReader(b))
		if (l == nil) != (err != nil) {
			t.Fatalf("%v, %v", l, err)
		}
		if l != nil && (l.Len() == 0 || l.Len() > len(b)/5+1) {
			t.Fatalf("%d symbols of %d bytes", l.Len(), len(b))
		}
	})
}
