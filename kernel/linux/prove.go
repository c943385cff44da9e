package linux

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"vmscope/arch"
	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// prove checks a claim in each paging mode that it may mean, and returns the
// kernel if it holds.
func (f *finder) prove(c *claim) (*Kernel, error) {
	var likeliest error // of the mode that the claim hints at
	for _, mode := range c.modes {
		k, err := f.proveIn(c, mode)
		if err == nil {
			f.step("prove "+c.source, "%s, %s paging, _stext %#x at physical %#x", k.Release, mode, uint64(k.Text), uint64(k.Phys))
			return k, nil
		}
		if likeliest == nil {
			likeliest = err
		}
	}
	return nil, likeliest
}

// proveIn checks a claim in one paging mode: every step is a way in which a
// stale, foreign or forged candidate fails.
func (f *finder) proveIn(c *claim, mode arch.Mode) (*Kernel, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s, release %q: %w: %s", c.source, c.release, mem.ErrInconsistent, fmt.Sprintf(format, args...))
	}
	k := &Kernel{Arch: c.port.arch(), port: c.port, Text: c.text, Slide: c.slide, Phys: c.phys(c.text), Root: c.phys(c.root) + c.skipped, Mode: mode, info: c.info}
	v := k.View(f.phys)

	// The page tables lead where the image is said to lie.
	if err := leads(v.Mem, c.text, k.Phys); err != nil {
		return nil, fmt.Errorf("%s, release %q: root %#x: %w", c.source, c.release, uint64(k.Root), err)
	}
	// The symbol table is of the same image.
	syms, how, err := c.symbols(v.Mem)
	if err != nil {
		return nil, fmt.Errorf("%s, release %q: symbols: %w", c.source, c.release, err)
	}
	k.Symbols = syms
	if s, err := k.Symbol("_stext"); err != nil || s != c.text {
		return nil, bad("its symbol table says _stext = %#x (%v), it says %#x", uint64(s), err, uint64(c.text))
	}
	f.supply(k)
	if err := v.imageInPlace(); err != nil {
		return nil, fmt.Errorf("%s, release %q: %w", c.source, c.release, errors.Join(err, k.unfit))
	}
	if s, name, err := k.firstSymbol("init_top_pgt", "swapper_pg_dir"); err == nil && s != c.root {
		return nil, bad("its symbol table says %s = %#x, it says %#x", name, uint64(s), uint64(c.root))
	}
	k.describe(v, c)
	k.Report.Findings = []Finding{
		{"kernel", k.Release, "linux_banner", "proved"},
		{"image", fmt.Sprintf("_stext %#x at physical %#x", uint64(k.Text), uint64(k.Phys)), c.source, "proved"},
		{"page-table root", fmt.Sprintf("%#x", uint64(k.Root)), c.source, "proved"},
		{"paging", mode.String(), "page-table walk", "proved"},
		{"symbols", fmt.Sprintf("%d, %s", k.Symbols.Len(), k.Symbols.Proof().Layout), how, "proved"},
	}
	return k, nil
}

// Symbols all over the image: those that are looked up, and of a kernel whose
// kallsyms has functions only, those of which VMCOREINFO tells.
var (
	inImage = []string{"_stext", "linux_banner", "init_task", "jiffies_64", "tk_core", "timekeeper_data"}
	stated  = []string{"_stext", "init_uts_ns", "swapper_pg_dir", "prb"}
)

// imageInPlace checks that the page tables lead to the image all over it, to
// its variables above all. The image of a kernel that ended may be whole, but
// the tables that map the end of it lay in memory that the next kernel uses for
// the same: then they lead to that one's variables.
func (v *View) imageInPlace() error {
	names := inImage
	if v.bare() {
		names = stated
	}
	for _, name := range names {
		at, err := v.Symbol(name)
		switch {
		case errors.Is(err, ksym.ErrNoSymbol) && (name == "tk_core" || name == "timekeeper_data"):
			continue // one of them
		case err != nil:
			return err
		}
		if err := leads(v.Mem, at, v.Kernel.Phys+mem.PA(at-v.Text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// leads checks that the page tables map va to pa.
func leads(s *mem.Space, va mem.VA, pa mem.PA) error {
	m, err := s.Translate(va)
	if err != nil {
		return err
	}
	if m.PA != pa {
		return fmt.Errorf("%w: page tables lead from %#x to %#x, not to %#x", mem.ErrInconsistent, uint64(va), uint64(m.PA), uint64(pa))
	}
	return nil
}

// describe reads how the kernel names itself. None of it keeps the kernel from
// running, so a guest that is owned may have changed it: what does not agree is
// no reason to be blind to that kernel, but evidence.
func (k *Kernel) describe(v *View, c *claim) {
	doubt := func(format string, args ...any) {
		k.Report.Contradictions = append(k.Report.Contradictions, fmt.Sprintf(format, args...))
	}
	k.Release = c.release
	switch release, banner, err := readBanner(v); {
	case err != nil:
		doubt("%v", err)
	case c.release != "" && release != c.release:
		doubt("linux_banner says release %q, %s says %q", release, c.source, c.release)
		fallthrough
	default:
		k.Release, k.Banner = release, banner
	}
	if err := checkInitTask(v); err != nil && !errors.Is(err, ErrNoData) {
		doubt("%v", err)
	}
}

// maxBanner is more than any kernel calls itself.
const maxBanner = 1024

// readBanner reads linux_banner (init/version.c, since v6.2
// init/version-timestamp.c): "Linux version RELEASE (who@where) …".
func readBanner(v *View) (release, banner string, err error) {
	at, err := v.Symbol("linux_banner")
	if errors.Is(err, ErrNoData) {
		at, err = v.findBanner()
	}
	if err != nil {
		return "", "", err
	}
	b, err := v.Mem.CString(at, maxBanner)
	if err != nil {
		return "", "", err
	}
	rest, ok := strings.CutPrefix(string(b), "Linux version ")
	release, _, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 {
		return "", "", fmt.Errorf("linux_banner at %#x reads %.40q", uint64(at), b)
	}
	return release, strings.TrimRight(string(b), "\n"), nil
}

// checkInitTask looks for the idle task's name in init_task. Layouts are not
// known yet: the name must stand somewhere in it.
func checkInitTask(v *View) error {
	at, err := v.Symbol("init_task")
	if err != nil {
		return err
	}
	b := make([]byte, 8192)
	n, err := v.Mem.Read(b, at)
	if err != nil && n < mem.PageSize {
		return err
	}
	if !bytes.Contains(b[:n], []byte("swapper/0\x00")) && !bytes.Contains(b[:n], []byte("swapper\x00")) {
		return fmt.Errorf("init_task at %#x does not hold the idle task's name", uint64(at))
	}
	return nil
}

// maxBTF bounds the type description; the largest distribution kernels have
// 8 MiB.
const maxBTF = 64 << 20

// btf reads the type description that the kernel carries.
func (k *Kernel) btf(v *View) (*ctype.Types, error) {
	start, err := k.Symbol("__start_BTF")
	switch {
	case errors.Is(err, ErrNoData):
		return k.findBTF(v)
	case err != nil:
		return nil, fmt.Errorf("this kernel carries no BTF (built without CONFIG_DEBUG_INFO_BTF): %w", errors.ErrUnsupported)
	}
	stop, err := k.Symbol("__stop_BTF")
	if err != nil {
		return nil, err
	}
	if stop <= start || stop-start > maxBTF {
		return nil, fmt.Errorf("BTF from %#x to %#x: %w", uint64(start), uint64(stop), mem.ErrInconsistent)
	}
	blob := make([]byte, stop-start)
	if _, err := v.Mem.Read(blob, start); err != nil {
		return nil, fmt.Errorf("read BTF: %w", err)
	}
	return ctype.Parse(blob)
}
