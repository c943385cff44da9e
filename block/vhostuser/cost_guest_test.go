package vhostuser

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/guestlab"
)

// cpuTime is what a process has used so far, by its CPU clock (clock_getcpuclockid).
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// patterns of the cost benchmark, on the raw device $d. O_DIRECT where the guest's own cache would do the work.
var patterns = []struct{ name, script string }{
	{"write 1M", "dd if=/dev/zero of=$d bs=1M count=192 oflag=direct"},
	{"write 4k", "dd if=/dev/zero of=$d bs=4k count=4000 oflag=direct"},
	{"read 1M", "dd if=$d of=/dev/null bs=1M count=192 iflag=direct"},
	{"read 4k", "dd if=$d of=/dev/null bs=4k count=4000 iflag=direct"},
	{"cached write", "dd if=/dev/zero of=$d bs=1M count=192 conv=fsync"},
	{"fsync", "i=0; while [ $i -lt 60 ]; do i=$((i+1)); dd if=/dev/zero of=$d bs=4k count=1 seek=$i conv=fsync,notrunc; done"},
}

// BenchmarkGuestCost compares disks in one guest: CPU of QEMU and the back end together, and time, as medians of the
// ratios to the plain disk of the same round. A second plain disk shows what is noise. VHOST_USER_ROUNDS sets the number
// of rounds.
func BenchmarkGuestCost(b *testing.B) {
	guestlab.Need(b, "truncate")
	if testing.Short() {
		guestlab.Skip(b, "boots a guest; not under -short")
	}
	rounds := 3
	fmt.Sscan(os.Getenv("VHOST_USER_ROUNDS"), &rounds)
	dir := b.TempDir()
	var args []string
	names := []string{"plain", "plain again", "plain cache=none", "vhost-user", "vhost-user, all copied"}
	pids := make([]int, len(names))
	for i := range names {
		image := filepath.Join(dir, fmt.Sprint("disk", i))
		if err := os.WriteFile(image, make([]byte, 200<<20), 0o600); err != nil {
			b.Fatal(err)
		}
		if i < 3 {
			cache := "writeback"
			if i == 2 {
				cache = "none"
			}
			args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d,cache=%s", image, i, cache),
				"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,queue-size=128,num-queues=1,addr=%#x", i, 0x10+i))
			continue
		}
		socket := socketPath(b)
		copying := ""
		if i == 4 {
			copying = "copy"
		}
		p := startBackEnd(b, "listen", socket, image, copying)
		pids[i] = p.cmd.Process.Pid
		args = append(args, "-chardev", fmt.Sprintf("socket,id=c%d,path=%s", i, socket),
			"-device", fmt.Sprintf("vhost-user-blk-pci,chardev=c%d,num-queues=1,addr=%#x", i, 0x10+i))
	}
	g := guestlab.Boot(b, guestlab.Config{Kernel: "bookworm-cloud", RAM: guestlab.Memfd, QEMUArgs: args})
	ctx := context.Background()
	type cost struct{ cpu, wall time.Duration }
	measure := func(disk int, script string) cost {
		b.Helper()
		c := cost{}
		total := func() time.Duration {
			d := cpuTime(b, g.PID())
			if pids[disk] != 0 {
				d += cpuTime(b, pids[disk])
			}
			return d
		}
		at, cpu := time.Now(), total()
		if _, err := g.Run(ctx, fmt.Sprintf("d=/dev/vd%c\n(%s) 2>/dev/null", 'a'+disk, script)); err != nil {
			b.Fatal(err)
		}
		c.cpu, c.wall = total()-cpu, time.Since(at)
		return c
	}
	for b.Loop() {
		var table strings.Builder
		for _, p := range patterns {
			ratios := make([][2][]float64, len(names))
			var plain []time.Duration
			for range rounds {
				got := make([]cost, len(names))
				for _, i := range rand.Perm(len(names)) {
					got[i] = measure(i, p.script)
				}
				plain = append(plain, got[0].cpu)
				for i := range names {
					ratios[i][0] = append(ratios[i][0], float64(got[i].cpu)/float64(got[0].cpu))
					ratios[i][1] = append(ratios[i][1], float64(got[i].wall)/float64(got[0].wall))
				}
			}
			slices.Sort(plain)
			fmt.Fprintf(&table, "%-13s plain %4d ms:", p.name, plain[len(plain)/2].Milliseconds())
			for i := 1; i < len(names); i++ {
				for k := range 2 {
					slices.Sort(ratios[i][k])
				}
				cpu := ratios[i][0]
				fmt.Fprintf(&table, "  %s %.2f (%.2f-%.2f) [%.2f]", names[i], cpu[len(cpu)/2], cpu[0], cpu[len(cpu)-1], ratios[i][1][len(cpu)/2])
				if i > 2 {
					b.ReportMetric(cpu[len(cpu)/2], strings.ReplaceAll(strings.TrimSuffix(names[i]+" "+p.name, " "), " ", "_"))
				}
			}
			table.WriteByte('\n')
		}
		b.Log("\n" + table.String())
	}
}
