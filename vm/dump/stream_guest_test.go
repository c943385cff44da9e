package dump

import (
	"encoding/json"
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
