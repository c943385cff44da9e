package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
)

// processes is how many the guests of live run, kernel threads among them.
const processes = 100

// live boots guests of several sizes and measures what users do: list the
// processes, within a program and as a whole command that knows nothing before.
func live(w io.Writer, sizes []int, rounds int) error {
	bin, err := buildCommand()
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(bin))
	fmt.Fprintf(w, "\nlive guests (bookworm cloud, %d processes)\n\n", processes)
	fmt.Fprintln(w, "| RAM | data in RAM | how | list, µs | list with all fields, µs | whole `vmscope ps`, ms wall (CPU) | own memory, MiB |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|")
	for _, mib := range sizes {
		for _, ram := range []guestlab.RAM{guestlab.SharedFile, guestlab.Anonymous} {
			if err := liveRow(w, bin, mib, ram, rounds); err != nil {
				return fmt.Errorf("guest of %d MiB: %w", mib, err)
			}
		}
	}
	return nil
}

func buildCommand() (string, error) {
	dir, err := os.MkdirTemp("", "vmscope-bench-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "vmscope")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/vmscope")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build vmscope: %w\n%s", err, out)
	}
	return bin, nil
}

func liveRow(w io.Writer, bin string, mib int, ram guestlab.RAM, rounds int) error {
	ctx := context.Background()
	g, err := guestlab.Start(ctx, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: mib, RAM: ram, Name: fmt.Sprintf("bench-%d-%d", mib, os.Getpid())})
	if err != nil {
		return err
	}
	defer g.Close()
	if err := populate(ctx, g); err != nil {
		return err
	}
	target := fmt.Sprintf("qemu:%d", g.PID())
	vm, err := vmscope.Open(ctx, target)
	if err != nil {
		return err
	}
	defer vm.Close()
	var data string
	var tasks, all time.Duration
	err = vm.View(ctx, func(v *vmscope.View) error {
		data = v.Report.Steps[0].Note
		var list []linux.Task
		var err error
		tasks, err = bestOf(rounds*50, func() error { list, err = v.AppendTasks(list[:0]); return err })
		if err != nil {
			return err
		}
		all, err = bestOf(rounds, func() error { _, err := v.Processes(); return err })
		return err
	})
	if err != nil {
		return err
	}
	wall, cpu, anon, err := command(bin, rounds, "ps", target)
	if err != nil {
		return err
	}
	_, data, _ = strings.Cut(data, ", ")
	fmt.Fprintf(w, "| %d MiB | %s | %s | %.1f | %.0f | %.0f (%.0f) | %.1f |\n", mib, data, map[guestlab.RAM]string{guestlab.SharedFile: "mmap", guestlab.Anonymous: "process_vm_readv"}[ram],
		float64(tasks.Nanoseconds())/1e3, float64(all.Nanoseconds())/1e3, float64(wall.Microseconds())/1e3, float64(cpu.Microseconds())/1e3, anon)
	return nil
}

// populate has a guest run as many processes as are measured.
func populate(ctx context.Context, g *guestlab.Guest) error {
	_, err := g.Run(ctx, fmt.Sprintf(`n=$(ls -d /proc/[0-9]* | wc -l); while [ $n -lt %d ]; do sleep 9999 >/dev/null 2>&1 & n=$((n+1)); done`, processes))
	return err
}

// bestOf is the CPU time of the fastest of n calls.
func bestOf(n int, f func() error) (best time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range n {
		start := cpuTime()
		if err := f(); err != nil {
			return 0, err
		}
		if t := cpuTime() - start; i == 0 || t < best {
			best = t
		}
	}
	return best, nil
}

// command runs the whole program some times: median wall time, its CPU time,
// and the most memory of its own (private, not of a file) in MiB.
func command(bin string, rounds int, args ...string) (wall, cpu time.Duration, anon float64, err error) {
	var walls, cpus []time.Duration
	for range rounds {
		cmd := exec.Command(bin, args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		start := time.Now()
		if err := cmd.Run(); err != nil {
			return 0, 0, 0, fmt.Errorf("%v: %w: %s", args, err, out.Bytes())
		}
		walls = append(walls, time.Since(start))
		cpus = append(cpus, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
	slices.Sort(walls)
	slices.Sort(cpus)
	anon, err = ownMemory(bin, args)
	return walls[len(walls)/2], cpus[len(cpus)/2], anon, err
}

// ownMemory runs the program with its output held back, so that it is still
// there when all work is done, and reads how much private memory it has.
func ownMemory(bin string, args []string) (mib float64, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	// A pipe that is full before the program writes its first byte.
	if err := fill(w); err != nil {
		return 0, err
	}
	cmd := exec.Command(bin, args...)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	w.Close()
	for still := 0; still < 5; {
		time.Sleep(20 * time.Millisecond)
		now, err := rssAnon(cmd.Process.Pid)
		if err != nil {
			break
		}
		if now > mib {
			mib, still = now, 0
			continue
		}
		still++
	}
	go io.Copy(io.Discard, r)
	return mib, cmd.Wait()
}

func fill(w *os.File) error {
	if err := w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		return err
	}
	b := make([]byte, 4096)
	for {
		if _, err := w.Write(b); err != nil {
			return nil // full
		}
	}
}

func rssAnon(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has ended", pid)
}
