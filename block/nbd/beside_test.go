package nbd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkBeside measures the server beside nbdkit's file plugin and qemu-nbd: the same file, the same load by QEMU's own
// client, in turns. It reports the CPU time of the server's process, and the wall time, of ours as a ratio to each.
func BenchmarkBeside(b *testing.B) {
	const size = 256 << 20
	file := filepath.Join(b.TempDir(), "image")
	if err := os.WriteFile(file, randomBytes(size), 0o600); err != nil {
		b.Fatal(err)
	}
	type server struct {
		name string
		sock string
		pid  int
	}
	var servers []server
	sock, cmd := startServer(b, file)
	servers = append(servers, server{"ours", sock, cmd.Process.Pid})
	for name, args := range map[string][]string{
		"nbdkit":   {"nbdkit", "-f", "-U", "SOCK", "file", file},
		"qemu-nbd": {"qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", "SOCK", file},
	} {
		if _, err := exec.LookPath(args[0]); err != nil {
			b.Logf("%s is not installed", args[0])
			continue
		}
		sock := filepath.Join(socketDir(b), "s")
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "SOCK", sock)
		}
		cmd := exec.Command(args[0], args[1:]...)
		startTool(b, cmd, sock)
		servers = append(servers, server{name, sock, cmd.Process.Pid})
	}
	slices.SortFunc(servers[1:], func(a, c server) int { return strings.Compare(a.name, c.name) })
	for _, load := range []struct {
		name string
		args string
	}{
		{"read4k/depth1", "-s 4096 -S 1052672 -c 20000 -d 1"},
		{"read4k/depth32", "-s 4096 -S 1052672 -c 40000 -d 32"},
		{"write4k/depth1", "-s 4096 -S 1052672 -c 20000 -d 1 -w"},
		{"write4k/depth32", "-s 4096 -S 1052672 -c 40000 -d 32 -w"},
		{"cold4k/depth32", "-s 4096 -S 1052672 -c 4000 -d 32"},
		{"cold1m/depth8", "-s 1048576 -c 256 -d 8"},
		{"read64k/depth8", "-s 65536 -c 10000 -d 8"},
		{"read1m/depth1", "-s 1048576 -c 1000 -d 1"},
		{"read1m/depth8", "-s 1048576 -c 1000 -d 8"},
		{"write64k/depth8", "-s 65536 -c 10000 -d 8 -w"},
		{"write1m/depth1", "-s 1048576 -c 1000 -d 1 -w"},
		{"write1m/depth8", "-s 1048576 -c 1000 -d 8 -w"},
		{"write4k+flush", "-s 4096 -c 300 -d 1 -w --flush-interval 1"},
	} {
		b.Run(load.name, func(b *testing.B) {
			if _, err := exec.LookPath("qemu-img"); err != nil {
				b.Skip("qemu-img is not installed")
			}
			cpu, wall := make([][]float64, len(servers)), make([][]float64, len(servers))
			for b.Loop() {
				for _, i := range rand.Perm(len(servers)) {
					s := servers[i]
					args := append([]string{"bench", "-f", "raw"}, strings.Fields(load.args)...)
					if strings.HasPrefix(load.name, "cold") {
						dropCache(b, file)
					}
					c0, t0 := processTime(b, s.pid), time.Now()
					if out, err := exec.Command("qemu-img", append(args, "nbd+unix:///?socket="+s.sock)...).CombinedOutput(); err != nil {
						b.Fatalf("%s: %v: %s", s.name, err, out)
					}
					wall[i] = append(wall[i], time.Since(t0).Seconds())
					cpu[i] = append(cpu[i], (processTime(b, s.pid) - c0).Seconds())
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(1e3*median(cpu[0]), "cpu-ms")
			for i := 1; i < len(servers); i++ {
				b.ReportMetric(median(ratios(cpu[0], cpu[i])), "cpu/"+servers[i].name)
				b.ReportMetric(median(ratios(wall[0], wall[i])), "wall/"+servers[i].name)
			}
		})
	}
}

// processTime is the CPU time that a process has used.
func processTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil { // MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)
		t.Fatal(fmt.Errorf("CPU time of process %d: %w", pid, err))
	}
	return time.Duration(ts.Nano())
}

// dropCache takes a file out of the page cache.
func dropCache(t testing.TB, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}

func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}
