package dump

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// TestQEMUSavevm: a snapshot of a real machine in its disk image is what its ELF
// dump says, with clusters of several sizes.
func TestQEMUSavevm(t *testing.T) {
	for name, options := range map[string]string{"usual": "cluster_size=65536", "small clusters": "cluster_size=4096", "old": "compat=0.10", "large clusters": "cluster_size=2M,compression_type=zstd"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			disk, elf := filepath.Join(dir, "disk"), filepath.Join(dir, "elf")
			// A size that is no multiple of what an entry of the first level covers.
			if out, err := exec.Command("qemu-img", "create", "-f", "qcow2", "-o", options, disk, "333M").CombinedOutput(); err != nil {
				guestlab.SkipOrFail(t, "qemu-img: "+err.Error()+": "+string(out))
			}
			c, known := idleQEMU(t, "-drive", "if=virtio,format=qcow2,file="+disk)
			ask(t, c, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + elf})
			for _, name := range []string{"first", "second"} {
				var out string
				if err := json.Unmarshal(ask(t, c, "human-monitor-command", map[string]any{"command-line": "savevm " + name}), &out); err != nil || out != "" {
					t.Fatalf("savevm: %q, %v", out, err)
				}
			}
			ask(t, c, "quit", nil)
			vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, disk) }, vmtest.Want{
				Ranges: []mem.Range{{Start: 0, Size: 64 << 20}}, Bytes: known, CPUs: 2,
			})
			e, m := open(t, elf), open(t, disk)
			defer e.Close()
			defer m.Close()
			if l := m.(vm.Describer).Info().Layout; !strings.Contains(l, `snapshot "second", the latest of 2 with memory`) || strings.Contains(l, "end was not found") {
				t.Errorf("layout %q", l)
			}
			over := mem.Range{Start: 0xa0000, Size: 0x60000}
			vmtest.Same(t, e, m, over)
			vmtest.Same(t, m, e, over)
		})
	}
}
