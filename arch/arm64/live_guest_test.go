package arm64_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmscope/arch"
	"vmscope/arch/arm64"
	"vmscope/internal/guestlab"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/qemu"
)

// regimes are the granules and sizes of address that there are.
var regimes = []regime{
	{"4K 39", shape{12, 39}, shape{12, 39}, 5, 0},
	{"4K 48", shape{12, 48}, shape{12, 48}, 5, tcrTBI0 | tcrHA},
	{"4K 52, LPA2", shape{12, 52}, shape{12, 52}, 6, tcrDS | tcrTBI0 | tcrHA | tcrHD},
	{"4K 48, descriptors of LPA2", shape{12, 48}, shape{12, 48}, 6, tcrDS | tcrTBI1},
	{"4K 39, LPA2 below", shape{12, 51}, shape{12, 39}, 6, tcrDS | tcrHPD0},
	{"16K 36", shape{14, 36}, shape{14, 36}, 5, tcrHA | tcrHD},
	{"16K 47", shape{14, 47}, shape{14, 47}, 5, tcrHPD1},
	{"16K 48", shape{14, 48}, shape{14, 48}, 5, tcrTBI0 | tcrTBI1 | tcrHD},
	{"16K 52, LPA2", shape{14, 52}, shape{14, 52}, 6, tcrDS | tcrHA | tcrHD | tcrTBI0},
	{"64K 42", shape{16, 42}, shape{16, 42}, 5, tcrTBI0 | tcrHA | tcrHD},
	{"64K 42, LPA", shape{16, 42}, shape{16, 42}, 6, tcrTBI0 | tcrHA | tcrHD},
	{"64K 48, LPA", shape{16, 48}, shape{16, 48}, 6, tcrHA},
	{"64K 52, LVA and LPA", shape{16, 52}, shape{16, 52}, 6, tcrTBI0 | tcrHA | tcrHD},
	{"64K 52, LVA", shape{16, 52}, shape{16, 52}, 5, tcrHPD0 | tcrHPD1},
	{"mixed, 40 bits of address", shape{16, 33}, shape{12, 31}, 2, tcrTBI1},
	{"small", shape{12, 17}, shape{14, 17}, 5, 0},
	{"small, 64K", shape{16, 18}, shape{16, 25}, 6, 0},
	{"above alone", shape{}, shape{12, 48}, 5, 0},
	{"below alone", shape{14, 47}, shape{}, 5, 0},
	{"too great", shape{12, 51}, shape{12, 48}, 5, 0},
}

// TestProcessorGuest has an emulated processor translate addresses, and execute
// what is there, by tables of each granule and size of address, blocks, pages and
// runs, and compares what it comes to with what its memory is read as from outside.
func TestProcessorGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a machine")
	}
	const (
		base = 0x4020_0000 // behind QEMU's device tree
		done = base + 0x1000
		list = base + 0x2000
		code = base + 0x1_0000
	)
	m := &image{base: base, code: code, rng: rand.New(rand.NewPCG(64, 52))}
	m.alloc(code-base+codeSize, 1)
	copy(m.data, askProgram(base, list, done))
	for at := uint64(code); at < code+codeSize; at += 4 {
		binary.LittleEndian.PutUint32(m.data[at-base:], hvc)
	}
	asks := make([][]question, len(regimes))
	for i := range regimes {
		asks[i] = m.regime(&regimes[i], list+uint64(i)*recordSize)
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, m.data, 0o600); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("at-%d", os.Getpid())
	guestlab.BareArm64(t, name, 128, "-machine", "virtualization=on", "-cpu", "max",
		"-device", fmt.Sprintf("loader,file=%s,addr=%#x,cpu-num=0,force-raw=on", file, base))
	g := open(t, name)
	for n := 0; word(t, g, done) == 0; n++ {
		if n == 6000 {
			t.Fatal("the guest does not come to an end")
		}
		if err := g.(vm.Ender).Ended(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for i := range regimes {
		t.Run(regimes[i].name, func(t *testing.T) { compareRegime(t, g, &regimes[i], list+uint64(i)*recordSize, asks[i]) })
	}
}

func open(t *testing.T, name string) vm.Machine {
	t.Helper()
	for n := 0; ; n++ {
		g, err := qemu.Open(t.Context(), name)
		if err == nil {
			t.Cleanup(func() { g.Close() })
			return g
		}
		if n == 3000 {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // it has no RAM yet
	}
}

func word(t *testing.T, g vm.Machine, at uint64) uint64 {
	t.Helper()
	w, err := mem.Load64(g, mem.PA(at))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// regime makes tables and questions, and the records of both for the program.
func (m *image) regime(r *regime, record uint64) []question {
	var asks []question
	root := func(s shape, top uint64, vectors bool) uint64 {
		if s.bits == 0 {
			return 0
		}
		wide := r.more&tcrDS != 0 || s.page == 16 && r.ips == 6
		t := &tree{image: m, regime: r, shape: s, wide: wide, top: top}
		table := t.make(t.firstLevel(), 0, vectors)
		for range 50 { // beyond what is translated, with tags, and anywhere
			any := t.asks[m.rng.IntN(len(t.asks))].va
			t.asks = append(t.asks, question{va: any ^ 1<<(s.bits+m.rng.UintN(64-s.bits))},
				question{va: any ^ m.rng.Uint64()<<56}, question{va: m.rng.Uint64()&(1<<s.bits-1) | top})
		}
		asks = append(asks, t.asks...)
		return table
	}
	m.set(record+regimeTCR, r.tcr())
	m.set(record+regimeTTBR0, root(r.low, 0, false)|m.rng.Uint64N(1<<16)<<48|1) // an ASID, and CnP
	m.set(record+regimeTTBR1, root(r.high, ^uint64(0)<<r.high.bits, true)|1)
	m.set(record+regimeVBAR, ^uint64(0)<<r.high.page)
	questions := m.alloc(uint64(len(asks))*recordSize, 8)
	m.set(record+regimeQuestions, questions)
	m.set(record+regimeCount, uint64(len(asks)))
	for i := range asks {
		q := &asks[i]
		q.jump = q.jump && r.high.bits != 0
		m.set(questions+uint64(i)*recordSize+questionVA, q.va)
		if q.jump {
			m.set(questions+uint64(i)*recordSize+questionJump, 1)
		}
	}
	return asks
}

func compareRegime(t *testing.T, g vm.Machine, r *regime, record uint64, asks []question) {
	mode := arm64.ModeOf(word(t, g, record+regimeSaysTCR))
	p := arm64.NewPaging(g, mode, mode.Low.Root(word(t, g, record+regimeSaysTTBR0)), mode.High.Root(word(t, g, record+regimeSaysTTBR1)))
	at := word(t, g, record+regimeQuestions)
	seen := map[string]int{}
	wrong := 0
	for i, q := range asks {
		a := readAnswer(t, g, at+uint64(i)*recordSize, q)
		m, err := p.Translate(mem.VA(q.va))
		checkSteps(t, p, mem.VA(q.va), m, err)
		kind, says := a.differs(r, m, err)
		seen[kind]++
		if says != "" {
			if wrong++; wrong <= 10 {
				t.Errorf("%#x: %s: %+v, %v; the processor: %+v", q.va, says, m, err, a)
			}
		}
	}
	t.Logf("%d questions, %d wrong: %v", len(asks), wrong, seen)
	if seen["mapped"] < 50 || seen["translation fault"] < 50 || r.high.bits != 0 && seen["executed"] == 0 {
		t.Error("too few to tell")
	}
	compareListing(t, p, mode, asks)
}

// compareListing holds the list of what is mapped, which is made another way, to Translate,
// which the processor has confirmed.
func compareListing(t *testing.T, p *arm64.Paging, mode arm64.Mode, asks []question) {
	var list []arch.Region
	for r, err := range p.Mappings(0, ^mem.VA(0)) {
		if err == nil {
			list = append(list, r)
		} else if !errors.Is(err, mem.ErrNoRAM) && !errors.Is(err, mem.ErrNotMapped) {
			t.Error(err)
		}
	}
	for _, q := range asks {
		m, err := p.Translate(mem.VA(q.va))
		va := mem.VA(q.va)
		if half := [2]arm64.Half{mode.Low, mode.High}[va>>55&1]; half.TopIgnored {
			va = mem.VA(int64(va) << 8 >> 8)
		}
		found := false
		for _, r := range list {
			if va-r.VA < mem.VA(r.Size) {
				found = true
				if err != nil || m.PA != r.PA+mem.PA(va-r.VA) || m.Size != r.Page || m.Perm != r.Perm {
					t.Fatalf("%#x: %+v, %v, but listed is %+v", q.va, m, err, r)
				}
			}
		}
		if found != (err == nil) {
			t.Fatalf("%#x: %+v, %v; is it listed: %v", q.va, m, err, found)
		}
	}
}
