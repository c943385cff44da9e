package dump

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// startMigration has QEMU write its migration stream into a file. Of a QEMU that lacks
// a capability the test is skipped.
func startMigration(t *testing.T, c *qmp.Client, path string, capabilities ...string) {
	t.Helper()
	uri := "exec:cat > '" + path + "'"
	var list []any
	known := ask(t, c, "query-migrate-capabilities", nil)
	for _, name := range capabilities {
		if !strings.Contains(string(known), strconv.Quote(name)) {
			guestlab.Skip(t, "this QEMU has no "+name)
		}
		if name == "mapped-ram" {
			uri = "file:" + path
		}
		list = append(list, map[string]any{"capability": name, "state": true})
	}
	if len(list) > 0 {
		ask(t, c, "migrate-set-capabilities", map[string]any{"capabilities": list})
	}
	ask(t, c, "migrate", map[string]any{"uri": uri})
}

// awaitMigration asks how it goes until done says that it is.
func awaitMigration(t *testing.T, c *qmp.Client, done func(status string, answer json.RawMessage) bool) {
	t.Helper()
	for i := 0; ; i++ {
		var is struct{ Status string }
		answer := ask(t, c, "query-migrate", nil)
		if err := json.Unmarshal(answer, &is); err != nil {
			t.Fatal(err)
		}
		if done(is.Status, answer) {
			return
		}
		if is.Status == "failed" || i == 2400 {
			t.Fatalf("migration: %s", answer)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func completed(status string, _ json.RawMessage) bool { return status == "completed" }

// kinds counts the pages of a stream by their form.
func kinds(m vm.Machine) (packed, changed int) {
	for _, g := range m.(*migration).block.pages {
		for _, at := range g {
			if at&atDelta != 0 {
				changed++
			} else if at&atPacked != 0 {
				packed++
			}
		}
	}
	return packed, changed
}

// TestQEMUStream: a real machine's stream is what its ELF dump says, also one of
// packed pages or of pages in their places, and one whose RAM is that of NUMA nodes.
func TestQEMUStream(t *testing.T) {
	nodes := []string{
		"-object", "memory-backend-ram,id=ram-node0,size=24M", "-object", "memory-backend-ram,id=ram-node1,size=40M",
		"-numa", "node,memdev=ram-node0", "-numa", "node,memdev=ram-node1",
	}
	for name, q := range map[string]struct{ args, capabilities []string }{
		"plain": {}, "NUMA nodes": {args: nodes},
		"packed": {capabilities: []string{"compress"}},                                                                    // QEMU up to 9.0
		"mapped": {capabilities: []string{"mapped-ram"}}, "of threads": {capabilities: []string{"mapped-ram", "multifd"}}, // QEMU from 9.0
	} {
		t.Run(name, func(t *testing.T) {
			c, known := idleQEMU(t, q.args...)
			dir := t.TempDir()
			elf, path := filepath.Join(dir, "elf"), filepath.Join(dir, "stream")
			ask(t, c, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + elf})
			startMigration(t, c, path, q.capabilities...)
			awaitMigration(t, c, completed)
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{
				Ranges: []mem.Range{{Start: 0, Size: 64 << 20}}, Bytes: known, CPUs: 2,
			})
			e, m := open(t, elf), open(t, path)
			defer e.Close()
			defer m.Close()
			if l := m.(vm.Describer).Info().Layout; !strings.HasPrefix(l, "q35 (") || strings.Contains(l, "end was not found") {
				t.Errorf("layout %q", l)
			}
			if packed, changed := kinds(m); (packed > 100) != slices.Contains(q.capabilities, "compress") || changed > 0 {
				t.Errorf("%d pages are packed, %d are differences", packed, changed)
			}
			// The dump has video memory and ROM where the machine maps them over its RAM.
			over := mem.Range{Start: 0xa0000, Size: 0x60000}
			vmtest.Same(t, e, m, over)
			vmtest.Same(t, m, e, over)
		})
	}
}

// counter is a BIOS of 64 KiB that counts in a word of each of the 128 pages from
// 64 KiB on, for ever. QEMU 7.2 does not see what is written to pages that are in the
// emulator's cache of translations, which a change of CR0.WP empties.
func counter() []byte {
	b := make([]byte, 64<<10)
	copy(b, []byte{
		0x0f, 0x20, 0xc0, 0x66, 0x35, 0, 0, 1, 0, 0x0f, 0x22, 0xc0, // mov eax, cr0; xor eax, 1 << 16; mov cr0, eax
		0xb8, 0x00, 0x10, // mov ax, 0x1000
		0x8e, 0xc0, 0x31, 0xff, // mov es, ax; xor di, di
		0x26, 0xff, 0x05, // inc word es:[di]
		0x81, 0xc7, 0x00, 0x10, 0x75, 0xf7, // add di, 0x1000; jnz to the inc
		0x05, 0x00, 0x10, 0x3d, 0x00, 0x90, 0x72, 0xeb, // add ax, 0x1000; cmp ax, 0x9000; jb to the mov es
		0xeb, 0xda, // jmp to the start
	})
	copy(b[len(b)-16:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0}) // jmp f000:0000
	return b
}

// TestQEMUDelta: of a machine that works while it is written, QEMU writes what changed
// in its pages (capability xbzrle). The stream is what its memory is in the end.
func TestQEMUDelta(t *testing.T) {
	dir := t.TempDir()
	bios, path, end := filepath.Join(dir, "bios"), filepath.Join(dir, "stream"), filepath.Join(dir, "end")
	if err := os.WriteFile(bios, counter(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, known := idleQEMU(t, "-bios", bios, "-smp", "1")
	// A pass over what changes takes half a second, in which the machine goes on. If it
	// was given no time even so, QEMU ends: then once more.
	ask(t, c, "migrate-set-parameters", map[string]any{"downtime-limit": 1, "max-bandwidth": 1 << 20})
	for changed, try := 0, 0; changed == 0; try++ {
		if try == 20 {
			t.Fatal("QEMU writes no differences")
		}
		ask(t, c, "cont", nil)
		startMigration(t, c, path, "xbzrle")
		stopped := false
		awaitMigration(t, c, func(status string, answer json.RawMessage) bool {
			var is struct {
				XBZRLE struct{ Pages int } `json:"xbzrle-cache"`
			}
			if err := json.Unmarshal(answer, &is); err != nil {
				t.Fatal(err)
			}
			if changed = is.XBZRLE.Pages; changed >= 48 && !stopped {
				stopped = true
				ask(t, c, "stop", nil)
			}
			return status == "completed"
		})
		t.Logf("%d differences, stopped: %t", changed, stopped)
	}
	ask(t, c, "pmemsave", map[string]any{"val": 0, "size": 64 << 20, "filename": end})
	want, err := os.ReadFile(end)
	if err != nil {
		t.Fatal(err)
	}
	m := open(t, path)
	defer m.Close()
	if _, changed := kinds(m); changed == 0 {
		t.Errorf("%d pages are differences", changed)
	}
	// What it counted last QEMU may not have seen, for the same reason.
	for at := 64 << 10; at < 64<<10+128<<12; at += 4096 {
		var word [2]byte
		if _, err := m.ReadPhys(word[:], mem.PA(at)); err != nil {
			t.Fatal(err)
		}
		is, was := binary.LittleEndian.Uint16(word[:]), binary.LittleEndian.Uint16(want[at:])
		if is == 0 || was-is > 2 {
			t.Errorf("page %#x has counted to %d, in the stream to %d", at, was, is)
		}
		copy(want[at:], word[:])
	}
	same(t, m, 0, want[:0xa0000])
	same(t, m, 1<<20, want[1<<20:])
	for pa, b := range known {
		same(t, m, pa, b)
	}
}
