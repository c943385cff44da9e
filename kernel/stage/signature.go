package stage

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"

	"vmscope/mem"
)

// signature is bytes that stand in something's image, and a look at what is around them.
type signature struct {
	text string
	kind Kind
	// name checks what is around the text, which is at b[i:], and gives the trace's name; "": it is something else.
	name func(b []byte, i int) string
}

// called is the name of a signature that needs no look around it.
func called(name string) func([]byte, int) string { return func([]byte, int) string { return name } }

// signatures are all that are known.
//
// The texts were read off the running programs, which the tests boot (SeaBIOS 1.16, EDK II 2022.11, GRUB 2.06, iPXE,
// Memtest86+ 6.10, ISOLINUX 6.04, U-Boot 2023.01, Xen 4.17), but for those of Windows and the BSDs, which are from the format of the record that leads to a
// program's PDB file (LLVM's docs/PDB) and from the kernels' sys/conf/newvers.sh.
var signatures = []signature{
	{"Xen version ", Hypervisor, xen},
	{"Linux version ", Linux, release},
	{"RSDS", System, windows},
	{"@(#)FreeBSD ", System, bsd},
	{"@(#)NetBSD ", System, bsd},
	{"@(#)OpenBSD ", System, bsd},
	{"Memtest86+ v", Memtest, memoryTest},
	{"HdrS", Image, image},
	{"Welcome to GRUB!", Loader, called("GRUB")},
	{" -- Open Source Network Boot Firmware -- ", Loader, called("iPXE")},
	{"ISOLINUX ", Loader, numbered},
	{"SYSLINUX ", Loader, numbered},
	{"PXELINUX ", Loader, numbered},
	{"U-Boot ", Chainable, numbered}, // arch/x86/cpu/start.S: it has a Multiboot header
	{"IBI SYST", Firmware, uefi},
	{"SeaBIOS (version ", Firmware, called("SeaBIOS")},
}

// traces finds what is in b, which lies at pa.
func traces(b []byte, pa mem.PA) (out []Trace) {
	for _, s := range signatures {
		for from := 0; ; {
			i := bytes.Index(b[from:], []byte(s.text))
			if i < 0 {
				break
			}
			if name := s.name(b, from+i); name != "" {
				out = append(out, Trace{s.kind, name, pa + mem.PA(from+i)})
				break // one is enough
			}
			from += i + len(s.text)
		}
	}
	// Boot loaders have such a header too, and are below.
	const lowest = 1 << 20
	for i := max(0, lowest-int(min(pa, lowest))); i+16 <= len(b); i += 4 {
		if name := multiboot(b, i); name != "" {
			return append(out, Trace{Multiboot, name, pa + mem.PA(i)})
		}
	}
	return out
}

// word gives the first n words of printable ASCII at b, parted by a blank; "" if there are not so many.
func word(b []byte, n int) string {
	b = b[:min(len(b), 96)]
	for i, c := range b {
		switch {
		case c == ' ' && n > 1:
			n--
		case c <= ' ' || c > '~':
			if n > 1 || i == 0 || b[i-1] == ' ' {
				return ""
			}
			return string(b[:i])
		}
	}
	return ""
}

// release reads linux_banner (init/version.c): "Linux version RELEASE (who@where) (compiler) #1 …". The same words without
// the rest stand in other texts, such as the format of that line.
func release(b []byte, i int) string {
	r := word(b[i:], 3)
	if r == "" {
		return ""
	}
	rest := b[i+len(r):]
	r = r[len("Linux version "):]
	if r[0] < '2' || r[0] > '9' || !bytes.HasPrefix(rest, []byte(" (")) || !bytes.Contains(rest[:min(len(rest), 512)], []byte(") #")) {
		return ""
	}
	return r
}

// xen reads the line with which Xen's console begins (xen/drivers/char/console.c): "Xen version 4.17.5 (Debian …) (who@where) …".
// A Linux that is Xen's guest logs other words.
func xen(b []byte, i int) string {
	v := word(b[i:], 3)
	if v == "" || !bytes.HasPrefix(b[i+len(v):], []byte(" (")) {
		return ""
	}
	if v = v[len("Xen version "):]; v[0] < '0' || v[0] > '9' {
		return ""
	}
	return "Xen " + v
}

// numbered reads a name that a version follows: "U-Boot 2023.01".
func numbered(b []byte, i int) string {
	name := word(b[i:], 2)
	if v := name[strings.IndexByte(name, ' ')+1:]; name == "" || v == "" || v[0] < '0' || v[0] > '9' {
		return ""
	}
	return name
}

// memoryTest reads "Memtest86+ v6.10", which its screen begins with.
func memoryTest(b []byte, i int) string {
	if name := word(b[i:], 2); len(name) > len("Memtest86+ v") {
		return name
	}
	return ""
}

// windows reads the record that names the symbol file of a program: "RSDS", 16 bytes of GUID, 4 of age, the name. It is
// Windows if the program is its kernel.
func windows(b []byte, i int) string {
	if i+24 > len(b) {
		return ""
	}
	switch word(b[i+24:], 1) {
	case "ntkrnlmp.pdb", "ntoskrnl.pdb", "ntkrpamp.pdb", "ntkrnlpa.pdb":
		return "Windows"
	}
	return ""
}

// bsd reads the text by which what(1) tells a kernel: "@(#)FreeBSD 14.1-RELEASE …".
func bsd(b []byte, i int) string { return word(b[i+len("@(#)"):], 2) }

// image reads the header of a kernel as boot loaders take it (Linux Documentation/arch/x86/boot.rst), in which "HdrS"
// stands at 0x202: the boot sector's mark before it, the protocol's version and the place of the release's text behind.
func image(b []byte, i int) string {
	start := i - 0x202
	if start < 0 || i+0xe > len(b) || binary.LittleEndian.Uint16(b[i-4:]) != 0xaa55 || b[i+5] != 2 {
		return ""
	}
	at := start + 0x200 + int(binary.LittleEndian.Uint16(b[i+0xc:]))
	if at == start+0x200 || at >= len(b) {
		return ""
	}
	// Others have such a header too, with their version: iPXE's begins with 1.
	if r := word(b[at:], 1); r != "" && r[0] >= '2' && r[0] <= '9' {
		return r
	}
	return ""
}

// multiboot checks a header by which boot loaders know a kernel: four words, of which the first is a magic number.
//
// Of the Multiboot specification 0.6.96, 3.1.1, magic number, flags and checksum make 0; 16 of the flags are what a
// loader must understand, and 3 of these are defined. Of the Multiboot2 specification 2.0, 3.1.1, it is aligned to 8
// bytes, and magic number, architecture, length and checksum make 0.
func multiboot(b []byte, i int) string {
	at := func(k int) uint32 { return binary.LittleEndian.Uint32(b[i+4*k:]) }
	switch at(0) {
	case 0x1badb002:
		if at(1)&0xfff8 == 0 && at(0)+at(1)+at(2) == 0 {
			return "multiboot kernel"
		}
	case 0xe85250d6:
		if i%8 == 0 && at(2) >= 16 && at(2) <= 32<<10 && at(0)+at(1)+at(2)+at(3) == 0 {
			return "multiboot2 kernel"
		}
	}
	return ""
}

// uefi checks an EFI_SYSTEM_TABLE (UEFI 2.10, 4.3), whose header has a checksum, and that its boot services still are:
// a system that has started ended them.
func uefi(b []byte, i int) string {
	const size = 120
	if i%8 != 0 || i+size > len(b) || binary.LittleEndian.Uint32(b[i+12:]) != size {
		return ""
	}
	var t [size]byte
	copy(t[:], b[i:])
	sum := binary.LittleEndian.Uint32(t[16:])
	clear(t[16:20])
	if crc32.ChecksumIEEE(t[:]) != sum || strings.Trim(string(t[96:104]), "\x00") == "" {
		return ""
	}
	return "UEFI"
}
