package stage

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/memtest"
	"vmscope/mem"
)

// ranged is memory of 8 MiB.
type ranged struct{ *memtest.Bytes }

func (ranged) Ranges() []mem.Range { return []mem.Range{{Size: 8 << 20}} }

// put gives memory in which b lies at pa.
func put(pa mem.PA, b []byte) mem.PhysReader {
	ram := make([]byte, 8<<20)
	copy(ram[pa:], b)
	return ranged{&memtest.Bytes{Data: ram}}
}

func header(release string) []byte {
	b := make([]byte, 0x1000)
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS\x0f\x02")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x600)
	copy(b[0x800:], release+" (someone@somewhere) #1 SMP\x00")
	return b
}

func systemTable(boot uint64) []byte {
	b := make([]byte, 120)
	copy(b, "IBI SYST")
	binary.LittleEndian.PutUint32(b[12:], 120)
	binary.LittleEndian.PutUint64(b[96:], boot)
	binary.LittleEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b))
	return b
}

func TestFind(t *testing.T) {
	multi2 := []byte{0xd6, 0x50, 0x52, 0xe8, 0, 0, 0, 0, 16, 0, 0, 0}
	sum := uint32(0)
	for i := 0; i < len(multi2); i += 4 {
		sum -= binary.LittleEndian.Uint32(multi2[i:])
	}
	multi2 = binary.LittleEndian.AppendUint32(multi2, sum)
	for _, c := range []struct {
		what string
		at   mem.PA
		data []byte
		want Trace
	}{
		{"nothing", 0, nil, Trace{}},
		{"a banner", 3<<20 - 9, []byte("Linux version 6.1.0-9-amd64 (a@b) (gcc 12) #1 SMP\n\x00"), Trace{Linux, "6.1.0-9-amd64", 3<<20 - 9}},
		{"the banner's format", 0x5000, []byte("Linux version %s (%s)\n\x00"), Trace{}},
		{"the banner's words alone", 0x5000, []byte("Linux version \x00"), Trace{}},
		{"the banner's words, and more", 0x5000, []byte("Linux version  (a@b) (gcc 12) #1 SMP\n\x00"), Trace{}},
		{"a text with the words", 0x5000, []byte("Linux version 6.1 or later (see the manual)\n\x00"), Trace{}},
		{"a boot header", 0x10000, header("5.10.0-1-amd64"), Trace{Image, "5.10.0-1-amd64", 0x10202}},
		{"a boot header's code", 0x10202, []byte("HdrS\x0f\x02"), Trace{}},
		{"another's boot header", 0x10000, header("1.21.1"), Trace{}},
		{"Xen", 0x300000, []byte("(XEN) Xen version 4.17.7 (Debian 4.17.7+13-g2445b30a44-0+deb12u1) (a@b) (gcc 12) debug=n\n"), Trace{Hypervisor, "Xen 4.17.7", 0x300006}},
		{"a guest of Xen", 0x300000, []byte("Xen version: 4.17.7 (preserve-AD)\n"), Trace{}},
		{"Xen's format", 0x300000, []byte("Xen version %d.%d%s (%s@%s)"), Trace{}},
		{"Xen's words alone", 0x300000, []byte("Xen version  (a@b)"), Trace{}},
		{"ISOLINUX", 0x8000, []byte("\r\nISOLINUX 6.04 20191223 ETCD Copyright"), Trace{Loader, "ISOLINUX 6.04", 0x8002}},
		{"U-Boot", 0x200000, slices.Concat(multi2, []byte("U-Boot 2023.01+dfsg-2 (Apr 02 2023)")), Trace{Chainable, "U-Boot 2023.01+dfsg-2", 0x200010}},
		{"of U-Boot's", 0x200000, []byte("U-Boot environment"), Trace{}},
		{"Windows", 0x200000, []byte("RSDS0123456789abcdef\x01\x00\x00\x00ntkrnlmp.pdb\x00"), Trace{System, "Windows", 0x200000}},
		{"another program of Windows", 0x200000, []byte("RSDS0123456789abcdef\x01\x00\x00\x00notepad.pdb\x00"), Trace{}},
		{"FreeBSD", 0x300000, []byte("@(#)FreeBSD 14.1-RELEASE releng/14.1\x00"), Trace{System, "FreeBSD 14.1-RELEASE", 0x300000}},
		{"a multiboot2 kernel", 0x100000, multi2, Trace{Multiboot, "multiboot2 kernel", 0x100000}},
		{"a boot loader's header", 0x8000, multi2, Trace{}},
		{"UEFI", 7 << 20, systemTable(0x1000), Trace{Firmware, "UEFI", 7 << 20}},
		{"UEFI that was left", 7 << 20, systemTable(0), Trace{}},
		{"a terminal's escape", 0x5000, []byte("Memtest86+ v\x1b[31m "), Trace{}},
	} {
		if got := Find(context.Background(), put(c.at, c.data)); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if got := Find(ended, put(0, header("5.10"))); got != (Trace{}) {
		t.Errorf("with a ctx that ended: %+v", got)
	}
}

func FuzzTraces(f *testing.F) {
	f.Add(header("6.1"), uint64(0x10000))
	f.Add(systemTable(1), uint64(1<<20-1))
	for _, s := range signatures {
		for _, behind := range []string{"", "\x00", " ", " (", "1", "2.6.1 (a@b) #"} {
			f.Add([]byte(s.text+behind), uint64(1<<20-4))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, pa uint64) {
		found := traces(b, mem.PA(pa))
		if len(found) > len(signatures)+1 {
			t.Fatalf("%d traces", len(found))
		}
		for _, x := range found {
			if x.Name == "" || len(x.Name) > 96 || strings.ContainsFunc(x.Name, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("%+v", x)
			}
		}
	})
}
