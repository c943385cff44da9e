package dump

import (
	"debug/elf"
	"os"
	"testing"

	"vmscope/mem"
)

// TestWriteAbsent writes a segment of which the core has no bytes between two
// that have some.
func TestWriteAbsent(t *testing.T) {
	a, b := ram(0, pattern(1, 2*mem.PageSize)), ram(0, pattern(2, mem.PageSize))
	a.VA, b.VA = 0x1000, 0x9000
	path := write(t, nil, a, Segment{VA: 0x3000, Size: 6 * mem.PageSize, Flags: 5, Absent: true}, b)
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got []elf.ProgHeader
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			got = append(got, p.ProgHeader)
		}
	}
	if len(got) != 3 || got[1].Vaddr != 0x3000 || got[1].Filesz != 0 || got[1].Memsz != 6*mem.PageSize || got[1].Flags != elf.PF_R|elf.PF_X {
		t.Fatalf("segments %+v", got)
	}
	if got[2].Off != got[0].Off+2*mem.PageSize || got[2].Filesz != mem.PageSize {
		t.Errorf("the absent segment takes room in the file: %+v", got)
	}
	if st, err := os.Stat(path); err != nil || uint64(st.Size()) != got[2].Off+mem.PageSize {
		t.Errorf("%v, %v", st.Size(), err)
	}
	if err := check([]Segment{{Size: mem.PageSize, Absent: true}, {Size: 1, Of: 0}}); err == nil {
		t.Error("bytes of a segment that has none")
	}
}
