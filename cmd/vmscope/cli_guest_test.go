package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/guestlab"
)

// TestCommandsGuest runs every command on a guest as people and scripts do.
func TestCommandsGuest(t *testing.T) {
	kernels := guestlab.TestKernels(t)
	g := guestlab.Boot(t, guestlab.Config{Kernel: kernels[0]})
	id := strings.Repeat("0123456789abcdef", 4)
	evil, err := g.Spawn(t.Context(), guestlab.Spawn{
		Comm: []byte("\xff\x1b[31m\u202ered"), Args: [][]byte{[]byte("a\x1b]0;title\a"), {0xff, '\n'}, []byte("b c")},
		Env: [][]byte{[]byte("KEY=a=b\x1b"), []byte("odd")}, UID: 1000, GID: 1001, Cgroup: "system.slice/docker-" + id + ".scope",
	})
	if err != nil {
		t.Fatal(err)
	}
	holder, err := g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("holder"), Hold: &guestlab.Hold{
		Files: []string{"/tmp/\x1b[31mred"}, Kinds: []string{"pipe", "eventfd"}, Listen: []string{"tcp4:127.0.0.1:8080", "unix:@a\x1b[31m"}, Mounts: []string{"/mnt/\x1b[1m"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	c := &cli{g: g, evil: evil, holder: holder, container: id}
	t.Run("output", c.testOutput)
	t.Run("values", c.testValues)
	t.Run("wrong", c.testWrong)
	t.Run("no types", c.testNoTypes)
	t.Run("dump", c.testDump)
	t.Run("write", c.testWrite)
	t.Run("pipe", c.testPipe)
	t.Run("signals", c.testSignals)
}

type cli struct {
	g            *guestlab.Guest
	evil, holder int
	container    string
}

// documented are the words of each section of docs/json.md that may be fields.
func documented(t *testing.T) map[string]map[string]bool {
	t.Helper()
	b, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`[a-z_]+`)
	out := make(map[string]map[string]bool)
	for _, section := range strings.Split(string(b), "\n## ")[1:] {
		title, text, _ := strings.Cut(section, "\n")
		for _, name := range word.FindAllString(title, -1) {
			out[name] = make(map[string]bool)
			for _, w := range word.FindAllString(text, -1) {
				out[name][w] = true
			}
		}
	}
	return out
}

// addresses are the fields that hold one: in JSON a number would lose bits.
var addresses = []string{"addr", "base", "module", "task", "root", "start", "end", "file", "mount", "sock", "page_table_root", "kaslr"}

var address = regexp.MustCompile(`^0x[0-9a-f]+$`)

// checkFields checks the form of each field of an object, and of those in it.
func checkFields(t *testing.T, command string, known map[string]bool, m map[string]any) {
	t.Helper()
	for k, v := range m {
		if !known[k] {
			t.Errorf("%s: field %q is not in docs/json.md", command, k)
		}
		isAddress := slices.Contains(addresses, k) && !(command == "mount" && k == "root") && !(command == "sym" && k == "module") && !(command == "type") && command != "disks"
		switch v := v.(type) {
		case string:
			if isAddress && !address.MatchString(v) {
				t.Errorf("%s: %s is %q, no address", command, k, v)
			}
			if k == "start_time" || k == "booted" {
				if _, err := time.Parse(time.RFC3339Nano, v); err != nil || !strings.HasSuffix(v, "Z") {
					t.Errorf("%s: %s is %q, %v", command, k, v, err)
				}
			}
		case float64:
			if isAddress {
				t.Errorf("%s: address %s is a number", command, k)
			}
		case map[string]any:
			checkFields(t, command, known, v)
		case []any:
			for _, x := range v {
				if x, ok := x.(map[string]any); ok {
					checkFields(t, command, known, x)
				}
			}
		case nil:
			t.Errorf("%s: %s is null instead of left out", command, k)
		}
	}
}

// testOutput runs every command that reads, for people and for scripts.
func (c *cli) testOutput(t *testing.T) {
	name, evil, holder := c.g.Name(), itoa(c.evil), itoa(c.holder)
	docs := documented(t)
	// Fields that each object must have: scripts rely on them.
	for _, x := range []struct {
		args, fields string
	}{
		{"vms", "pid vmm ram"},
		{"info " + name, "os arch release version kaslr page_table_root paging symbols types steps findings"},
		{"ps " + name, "pid ppid tgid uid gid comm state start_time kthread"},
		{"ps -T -l " + name, "pid ppid tgid uid gid comm state start_time kthread"},
		{"ps --tree " + name, "pid ppid"},
		{"lsmod " + name, "name size base refs state"},
		{"dmesg " + name, "seq ns level facility text"},
		{"mount " + name, "id parent dev root target options type source"},
		{"mount --pid " + holder + " " + name, "id target"},
		{"lsof " + name, "pid comm fd type path inode"},
		{"lsof --pid " + holder + " " + name, "pid comm fd type path inode"},
		{"ss " + name, "proto state local inode"},
		{"ss -t -l " + name, "proto state local inode uid owners"},
		{"maps --pid " + evil + " " + name, "start end perms offset inode"},
		{"env --pid " + evil + " " + name, "pid name"},
		{"sym " + name + " init_task linux_banner", "name addr type"},
		{"type " + name + " list_head task_struct", "name kind size members"},
		{"read --sym linux_banner --len 5000 " + name, "addr data"},
		{"read --pa 0x1000 --len 64 " + name, "addr data"},
		{"read --sym linux_banner --string " + name, "addr text data"},
		{"read --sym init_task --type task_struct " + name, "addr type data"},
	} {
		t.Run(x.args, func(t *testing.T) {
			args := strings.Fields(x.args)
			out, stderr, status := run(t, args...)
			if status != 0 || stderr != "" || out == "" {
				t.Fatalf("status %d, %q, %d bytes", status, stderr, len(out))
			}
			clean(t, "output", out)
			out, stderr, status = run(t, append(args, "--json")...)
			if status != 0 || stderr != "" {
				t.Fatalf("--json: status %d, %q", status, stderr)
			}
			n := 0
			for line := range strings.Lines(out) {
				n++
				m := object(t, line)
				for _, f := range strings.Fields(x.fields) {
					if _, ok := m[f]; !ok {
						t.Errorf("no %s in %s", f, line)
					}
				}
				checkFields(t, args[0], docs[args[0]], m)
			}
			if n == 0 {
				t.Error("--json: no line")
			}
		})
	}
}

// decoded runs a command with --json and decodes what it says.
func decoded[T any](t *testing.T, args ...string) (out []T) {
	t.Helper()
	text, stderr, status := run(t, append(args, "--json")...)
	if status != 0 {
		t.Fatalf("%q: status %d, %s", args, status, stderr)
	}
	for line := range strings.Lines(text) {
		var x T
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, x)
	}
	return out
}

// testValues compares what scripts get with what the guest says.
func (c *cli) testValues(t *testing.T) {
	name := c.g.Name()
	text, _, _ := run(t, "ps", name, "--json")
	for _, want := range []string{
		`"comm":"\udcff\u001b[31m\u202ered"`,
		`"cmdline":["a\u001b]0;title\u0007","\udcff\u000a","b c"]`,
		`"container":"` + c.container + `"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("ps --json lacks %s", want)
		}
	}
	text, _, _ = run(t, "info", name, "--json", "--registers")
	if !strings.Contains(text, `"name":"read registers"`) || !strings.Contains(text, "vCPUs map it") {
		t.Errorf("info --registers: %s", text)
	}
	text, _, _ = run(t, "ps", name)
	if want := `a\x1b]0;title\x07 \xff\n b c`; !strings.Contains(text, want) {
		t.Errorf("ps lacks %s: %s", want, text)
	}
	text, _, _ = run(t, "env", name, "--pid", itoa(c.evil))
	if text != "KEY=a=b\\x1b\nodd\n" {
		t.Errorf("env printed %q", text)
	}
	text, _, _ = run(t, "env", name, "--pid", itoa(c.evil), "--json")
	if want := fmt.Sprintf("{\"pid\":%d,\"name\":\"KEY\",\"value\":\"a=b\\u001b\"}\n{\"pid\":%[1]d,\"name\":\"odd\"}\n", c.evil); text != want {
		t.Errorf("env --json printed %q, want %q", text, want)
	}
	type vmLine struct {
		Name, VMM, OS, Kernel string
		PID                   int
		RAM                   uint64
	}
	i := slices.IndexFunc(decoded[vmLine](t, "vms"), func(v vmLine) bool {
		return v == vmLine{name, "qemu-tcg", "linux", c.g.Kernel().Release, c.g.PID(), 512 << 20}
	})
	if i < 0 {
		t.Error("vms does not list the guest")
	}
	syms, err := c.g.Run(t.Context(), "grep -E ' (init_task|linux_banner|bridge_notify_link|br_init)$' /proc/kallsyms | sort")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(syms) {
		f := strings.Fields(line)
		out, stderr, status := run(t, "sym", name, f[2])
		if status != 0 || !strings.Contains(out, f[0]+" "+f[1]+" "+f[2]) {
			t.Errorf("sym %s: %d %q %q, want %q", f[2], status, out, stderr, line)
		}
		out, _, _ = run(t, "sym", name, "0x"+f[0])
		if !strings.Contains(out, f[2]+"+0x0") {
			t.Errorf("sym 0x%s: %q, want %s", f[0], out, f[2])
		}
	}
	banner, err := c.g.Run(t.Context(), "cat /proc/version")
	if err != nil {
		t.Fatal(err)
	}
	type readLine struct{ Addr, Data, Text string }
	r := decoded[readLine](t, "read", name, "--sym", "linux_banner", "--string")
	if len(r) != 1 || r[0].Text != banner {
		t.Errorf("read --string: %+v, want %q", r, banner)
	}
	for _, args := range [][]string{{"--sym", "linux_banner"}, {"--va", r[0].Addr}} {
		d := decoded[readLine](t, append([]string{"read", name, "--len", itoa(len(banner))}, args...)...)
		b, err := hex.DecodeString(d[0].Data)
		if len(d) != 1 || err != nil || string(b) != banner {
			t.Errorf("read %q: %q, %v", args, b, err)
		}
		raw, _, status := run(t, append([]string{"read", name, "--raw", "--len", itoa(len(banner))}, args...)...)
		if status != 0 || raw != banner {
			t.Errorf("read --raw %q: %d, %q", args, status, raw)
		}
		dump, _, _ := run(t, append([]string{"read", name, "--len", itoa(len(banner))}, args...)...)
		if undumped := undump(t, dump); undumped != banner {
			t.Errorf("hex dump of %q: %q", args, undumped)
		}
	}
	// What a process has at its own address.
	at, err := c.g.Run(t.Context(), fmt.Sprintf("sed 's/.*) //' /proc/%d/stat | cut -d' ' -f46", c.evil))
	if err != nil {
		t.Fatal(err)
	}
	raw, stderr, status := run(t, "read", name, "--pid", itoa(c.evil), "--va", strings.TrimSpace(at), "--len", "16", "--raw")
	if status != 0 || raw != "a\x1b]0;title\a\x00\xff\n\x00b" {
		t.Errorf("read --pid: %d, %q, %q", status, raw, stderr)
	}
}

// undump turns a hex dump back into its bytes.
func undump(t *testing.T, dump string) string {
	t.Helper()
	var b []byte
	for line := range strings.Lines(dump) {
		digits, _, ok := strings.Cut(line[16:], "|")
		x, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if !ok || err != nil {
			t.Fatalf("hex dump: %q: %v", line, err)
		}
		b = append(b, x...)
	}
	return string(b)
}

// testWrong asks for what the guest does not have.
func (c *cli) testWrong(t *testing.T) {
	name := c.g.Name()
	for _, x := range []struct {
		args, word string
	}{
		{"maps " + name + " --pid 4194000", "no such process"},
		{"maps " + name + " --pid -1", "no such process"},
		{"maps " + name + " --pid 0", "no such process"},
		{"env " + name + " --pid 2", "thread of the kernel"},
		{"lsof " + name + " --pid 4194000", "no such process"},
		{"lsof " + name + " --pid 0", "no such process"},
		{"read " + name + " --pid 0 --va 0xffffffff81000000", "no such process"},
		{"mount " + name + " --pid 4194000", "no such process"},
		{"sym " + name + " no_such_symbol_at_all", "no such symbol"},
		{"sym " + name + " 0x10", "no such symbol"},
		{"sym " + name + " 0xzz", "no address"},
		{"type " + name + " no_such_type", "no such type"},
		{"type " + name + " --module no_such_module x", "no_such_module"},
		{"read " + name + " --va 0x10", "not mapped"},
		{"read " + name + " --pa 0xfffffffffff", "no RAM"},
		{"read " + name + " --sym no_such_symbol", "no such symbol"},
		{"read " + name + " --sym init_task+zz", `"zz"`},
		{"read " + name + " --sym init_task --type no_such_type", "no such type"},
		{"read " + name + " --va 0 --pid 2", "thread of the kernel"},
		{"dump " + name + " /no/such/directory/x", "no such file"},
		{"dump " + name + " " + t.TempDir(), "is a directory"},
		{"ps " + name + " --layout q36", "q36"},
	} {
		t.Run(x.args, func(t *testing.T) { failed(t, strings.Fields(x.args), x.word) })
	}
	// What there is of several things is printed; the rest is said.
	out, stderr, status := run(t, "sym", name, "no_such_a", "init_task", "no_such_b")
	if status != 2 || strings.Count(out, "\n") != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "no_such_a") || !strings.Contains(stderr, "no_such_b") {
		t.Errorf("sym: %d, %q, %q", status, out, stderr)
	}
	// A read that runs into memory that is not mapped gives what is before it.
	end := fmt.Sprintf("%#x", uint64(c.g.Config().MemoryMiB)<<20-32)
	out, stderr, status = run(t, "read", name, "--pa", end, "--len", "64")
	if status != 2 || len(undump(t, out)) != 32 || !strings.Contains(stderr, "no RAM") {
		t.Errorf("read over the end: %d, %q, %q", status, out, stderr)
	}
}

// testDump saves RAM and a process and opens the core again.
func (c *cli) testDump(t *testing.T) {
	name, path := c.g.Name(), filepath.Join(t.TempDir(), "core")
	if out, stderr, status := run(t, "dump", name, path); status != 0 || out != "" || stderr != "" {
		t.Fatalf("dump: %d, %q, %q", status, out, stderr)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: a core holds all the guest's secrets", st.Mode(), err)
	}
	failed(t, []string{"dump", name, path}, "exists", "--force")
	if _, stderr, status := run(t, "dump", name, path, "--force", "--pause"); status != 0 || stderr != "" {
		t.Errorf("dump --force --pause: %d, %q", status, stderr)
	}
	out, stderr, status := run(t, "ps", path)
	if status != 0 || stderr != "" || !strings.Contains(out, `a\x1b]0;title\x07`) {
		t.Errorf("ps of a dump: %d, %q, %q", status, stderr, out)
	}
	failed(t, []string{"ps", path, "--pause"}, "a dump does not run")
	failed(t, []string{"write", path, "--sym", "panic_timeout", "--u32", "1", "--allow-write"})
	short := filepath.Join(t.TempDir(), "short")
	b := make([]byte, 200<<20)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(short, b, 0o600); err != nil {
		t.Fatal(err)
	}
	failed(t, []string{"ps", short}, "truncated", "--truncated")

	process := filepath.Join(t.TempDir(), "process")
	if out, _, status := run(t, "dump", name, process, "--pid", itoa(c.evil)); status != 0 || out != "" {
		t.Errorf("dump --pid: %d, %q", status, out)
	}
	failed(t, []string{"dump", name, process + "2", "--pid", "4194000"}, "no such process")
	if _, err := os.Stat(process + "2"); err == nil {
		t.Error("what could not be dumped left a file")
	}
	failed(t, []string{"ps", process}) // it is no kernel
}

// testWrite changes a variable, only if told twice.
func (c *cli) testWrite(t *testing.T) {
	name := c.g.Name()
	get := func() string {
		out, err := c.g.Run(t.Context(), "cat /proc/sys/kernel/panic_on_oops")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	was := get()
	out, stderr, status := run(t, "write", name, "--sym", "panic_on_oops", "--u32", "7")
	if status != 2 || !strings.HasPrefix(out, "is ") || !strings.Contains(stderr, "--allow-write") || get() != was {
		t.Errorf("write without --allow-write: %d, %q, %q, %s", status, out, stderr, get())
	}
	out, stderr, status = run(t, "write", name, "--sym", "panic_on_oops", "--u32", "7", "--allow-write")
	if status != 0 || stderr != "" || !strings.Contains(out, "after ") || !strings.HasSuffix(out, ": 07 00 00 00\n") || get() != "7" {
		t.Errorf("write: %d, %q, %q, %s", status, out, stderr, get())
	}
	type writeLine struct{ When, Addr, Data string }
	w := decoded[writeLine](t, "write", name, "--sym", "panic_on_oops", "--u8", was, "--allow-write")
	if len(w) != 2 || w[0].When != "before" || w[0].Data != "07" || w[1].When != "after" || w[1].Data != fmt.Sprintf("%02s", was) || get() != was {
		t.Errorf("write --json: %+v, %s", w, get())
	}
}

// testPipe writes into a pipe that is closed after the first line.
func (c *cli) testPipe(t *testing.T) {
	for _, args := range [][]string{{"sym", c.g.Name()}, {"sym", c.g.Name(), "--json"}, {"dump", c.g.Name(), "-"}, {"ps", c.g.Name()}} {
		var stderr strings.Builder
		cmd := vmscopeCmd(args...)
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n, err := out.Read(make([]byte, 100)); n == 0 {
			t.Errorf("%q: nothing, %v", args, err)
		}
		out.Close()
		cmd.Wait()
		if stderr.Len() > 0 {
			t.Errorf("%q: stderr %q", args, stderr.String())
		}
	}
}

// qmpStatus is what the guest's monitor says of it, "" if it does not answer.
func (c *cli) qmpStatus() string {
	conn, err := net.Dial("unix", c.g.QMPSocket())
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	dec := json.NewDecoder(conn)
	fmt.Fprint(conn, `{"execute":"qmp_capabilities"} {"execute":"query-status"}`)
	for {
		var m struct{ Return struct{ Status string } }
		if dec.Decode(&m) != nil || m.Return.Status != "" {
			return m.Return.Status
		}
	}
}

// becomes waits until the guest is in the given state.
func (c *cli) becomes(t *testing.T, state string, within time.Duration) {
	t.Helper()
	var s string
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if s = c.qmpStatus(); s == state {
			return
		}
	}
	t.Fatalf("the guest is %q, not %s, after %v", s, state, within)
}

// testSignals ends the program while the guest is paused and it hangs in
// writing: the guest must run on.
func (c *cli) testSignals(t *testing.T) {
	hearHangups(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := vmscopeCmd("dump", c.g.Name(), "-", "--pause")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := cmd.StdoutPipe() // which nobody reads
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			c.becomes(t, "paused", 20*time.Second)
			began := time.Now()
			// As a terminal does: to the whole group.
			if err := syscall.Kill(-cmd.Process.Pid, sig); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("it did not end within 10 s")
			}
			took := time.Since(began)
			status := cmd.ProcessState.ExitCode()
			if (sig == syscall.SIGINT || sig == syscall.SIGTERM) && status != statusInterrupted && status != 0 {
				t.Errorf("status %d", status)
			}
			c.becomes(t, "running", 10*time.Second)
			t.Logf("ended with status %d after %v, the guest ran on after %v", status, took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
			if _, err := c.g.System(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	cmd := vmscopeCmd("ps", c.g.Name(), "--pause")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	c.becomes(t, "running", time.Second)
}
