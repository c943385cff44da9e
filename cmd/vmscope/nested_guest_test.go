package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
)

// A hostCLI runs the program in a machine that has guests of its own.
type hostCLI struct {
	agent   *guestlab.Agent
	hadTime func() time.Duration // how much time the machine has had
}

// run runs a command there, which has to end with a status, and gives all that it prints.
func (x *hostCLI) run(t *testing.T, status int, command string) string {
	t.Helper()
	out, err := x.agent.Run(t.Context(), fmt.Sprintf("%s 2>&1; echo $?", command))
	if err != nil {
		t.Fatal(err)
	}
	out = strings.TrimSuffix(out, "\n")
	i := strings.LastIndexByte(out, '\n') + 1
	if out[i:] != fmt.Sprint(status) {
		t.Fatalf("%s: status %s, not %d\n%s", command, out[i:], status, out[:i])
	}
	return out[:i]
}

func (x *hostCLI) lines(t *testing.T, command string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(x.run(t, 0, command)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%s: %q: %v", command, line, err)
		}
		all = append(all, m)
	}
	return all
}

// compare compares what the program says of a guest with what that says, and returns addresses of symbols. The guest has a
// name and a number by which the program finds it.
func (x *hostCLI) compare(t *testing.T, d *guestlab.Agent, target, number string) (symbols map[string]string) {
	t.Run("ps", func(t *testing.T) {
		before, err := d.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ours := x.lines(t, "vmscope ps "+number+" --json")
		after, err := d.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		comms := func(list []guestlab.Process) map[float64]string {
			m := map[float64]string{}
			for _, p := range list {
				m[float64(p.PID)] = string(p.Comm)
			}
			return m
		}
		was, is := comms(before), comms(after)
		same := 0
		for _, p := range ours {
			pid := p["pid"].(float64)
			if was[pid] == "" && is[pid] == "" {
				t.Errorf("%v is no process of the guest", p)
			}
			if was[pid] == p["comm"] && is[pid] == p["comm"] {
				delete(was, pid)
				same++
			}
		}
		for pid, comm := range was { // kernel workers come, go and are renamed
			if is[pid] == comm && !strings.HasPrefix(comm, "kworker/") {
				t.Errorf("process %v %q is not listed", pid, comm)
			}
		}
		if same < 20 {
			t.Errorf("only %d processes are as the guest says", same)
		}
		t.Logf("%d processes listed, %d as the guest says before and after", len(ours), same)
	})
	t.Run("lsmod", func(t *testing.T) {
		want, err := d.Modules(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ours := x.lines(t, "vmscope lsmod "+target+" --json")
		if len(ours) != len(want) || len(want) == 0 {
			t.Fatalf("%d modules of %d", len(ours), len(want))
		}
		for i, m := range want {
			if o := ours[i]; o["name"] != m.Name || o["size"] != float64(m.Size) || o["base"] != fmt.Sprintf("%#x", m.Addr) {
				t.Errorf("%v, want %+v", o, m)
			}
		}
		// The paper's program.
		names := ""
		for _, m := range want {
			names += strconv.Quote(m.Name) + "\n"
		}
		if got := x.run(t, 0, "modules "+target); got != names {
			t.Errorf("the paper's list of modules: %q, want %q", got, names)
		}
	})
	symbols = map[string]string{}
	t.Run("sym", func(t *testing.T) {
		names := []string{"linux_banner", "init_task", "sys_call_table", "vfs_read", "__x64_sys_read", "__x64_sys_kill"}
		want, err := d.Run(t.Context(), "echo; grep -wE '("+strings.Join(names, "|")+")$' /proc/kallsyms")
		if err != nil {
			t.Fatal(err)
		}
		lines := x.run(t, 0, "vmscope sym "+target+" "+strings.Join(names, " "))
		for _, name := range names {
			got, rest, _ := strings.Cut(lines, "\n")
			if lines = rest; !strings.Contains(strings.ToLower(want), "\n"+strings.ToLower(got)+"\n") || !strings.HasSuffix(got, " "+name) {
				t.Errorf("%q, want %s of %q", got, name, want)
			}
			address, _, _ := strings.Cut(got, " ")
			symbols[name] = "0x" + address
		}
	})
	t.Run("read", func(t *testing.T) {
		want, err := d.Run(t.Context(), "cat /proc/version")
		if err != nil {
			t.Fatal(err)
		}
		if got := x.run(t, 0, "vmscope read "+target+" --sym linux_banner --string"); strings.TrimSpace(got) != kernel.Text(want).String() {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("write", func(t *testing.T) {
		x.run(t, 2, "vmscope write "+target+" --sym dirty_writeback_interval --u32 17")
		x.run(t, 0, "vmscope write "+target+" --sym dirty_writeback_interval --u32 17 --allow-write")
		if got, err := d.Run(t.Context(), "cat /proc/sys/vm/dirty_writeback_centisecs"); err != nil || got != "17\n" {
			t.Errorf("the guest sees %q, %v", got, err)
		}
	})
	t.Run("bent", func(t *testing.T) {
		slot := fmt.Sprintf("vmscope write %s --sym sys_call_table+%#x --allow-write --u64 ", target, 8*syscall.SYS_KILL)
		x.run(t, 0, slot+symbols["vfs_read"])
		if out := x.run(t, 1, "vmscope check "+target+" --only syscalls"); !strings.Contains(out, "vfs_read") || !strings.Contains(out, "sys_call_table") {
			t.Errorf("of a system call that leads to vfs_read:\n%s", out)
		}
		x.run(t, 0, slot+symbols["__x64_sys_kill"])
	})
	return symbols
}

// inside runs a script in a guest.
func (x *hostCLI) inside(t *testing.T, g *guestlab.Agent, script string) string {
	t.Helper()
	out, err := g.Run(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// hostPatience is how much of the host's time anything may take.
const hostPatience = 4 * time.Minute

// await runs a command in the host until its output is as wanted.
func (x *hostCLI) await(t *testing.T, what, command string, wanted func(string) bool) {
	t.Helper()
	out := ""
	for end := x.hadTime() + hostPatience; x.hadTime() < end; time.Sleep(300 * time.Millisecond) {
		if out = x.run(t, 0, command); wanted(out) {
			return
		}
	}
	t.Fatalf("%s: not within %v; last:\n%s", what, hostPatience, out)
}

// events waits for events in a file of the host, in this order.
func (x *hostCLI) events(t *testing.T, file string, want ...string) {
	t.Helper()
	x.await(t, fmt.Sprintf("events %q", want), "cat "+file, func(rest string) bool {
		for _, e := range want {
			var ok bool
			if _, rest, ok = strings.Cut(rest, e+"\n"); !ok {
				return false
			}
		}
		return true
	})
}
