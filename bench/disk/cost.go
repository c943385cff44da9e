package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cost is what a load took.
type cost struct {
	// host is CPU time of QEMU but for the thread that emulates the guest's processor, and of all that stands behind the disk:
	// the cost of the way into the disk. The emulation takes many times as much, and its noise would cover all.
	host time.Duration
	cpu  time.Duration // of that thread too
	time time.Duration // by the guest's clock
	// switches is how often a thread of the host's side waited.
	switches int64
}

func (c cost) minus(d cost) cost {
	return cost{c.host - d.host, c.cpu - d.cpu, c.time - d.time, c.switches - d.switches}
}

// spent is what processes have used so far, the guest's first.
func (b *bench) spent(pids []int) (c cost, err error) {
	for _, pid := range pids {
		var ts unix.Timespec
		if e := unix.ClockGettime(int32(^pid<<3|2), &ts); e != nil { // clock_getcpuclockid
			err = errors.Join(err, fmt.Errorf("CPU time of process %d: %w", pid, e))
		}
		c.cpu += time.Duration(ts.Nano())
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", pid))
		for _, dir := range threads {
			if filepath.Base(dir) != strconv.Itoa(b.vcpu) {
				c.switches += switches(dir)
			}
		}
	}
	text, e := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", b.guest.PID(), b.vcpu)) // nanoseconds running, waiting, and times
	if e != nil {
		return c, errors.Join(err, e)
	}
	first, _, _ := strings.Cut(string(text), " ")
	vcpu, e := strconv.ParseInt(first, 10, 64)
	c.host = c.cpu - time.Duration(vcpu)
	return c, errors.Join(err, e)
}

// switches is how often a thread has waited; 0 if it has ended.
func switches(dir string) int64 {
	text, _ := os.ReadFile(dir + "/status")
	_, rest, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
	line, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return n
}

// family is a process and all below it.
func family(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // ended
		}
		_, rest, _ := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), ") ")
		f := strings.Fields(rest)
		if len(f) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(f[1])
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		children[parent] = append(children[parent], child)
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}
