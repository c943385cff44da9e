package vmscope_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/ksym"
	"vmscope/mem"
)

// testMonitors runs the examples that watch code, changes what they watch, and
// has it be again what it was.
func testMonitors(t *testing.T, g *guestlab.Guest) {
	dir := t.TempDir()
	command(t, ".", "go", "build", "-o", dir+"/", "./examples/syscalls", "./examples/integrity")
	defer g.Run(t.Context(), "rmmod dummy")
	if _, err := g.Run(t.Context(), "modprobe dummy"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		args  []string
		place func(tx *vmscope.Tx) (at mem.VA, other []byte, err error)
		tells string
		then  string // run in the guest later on; it must change nothing
	}{
		{"syscalls", nil, unusedCall, "sys_call_table[134]: ", ""},
		{"syscalls", nil, unusedBranch, "x64_sys_call[", ""},
		{"integrity", []string{"dummy"}, endOfDummy, "dummy: ", `
			mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
			cd /sys/kernel/tracing && echo :mod:dummy >set_ftrace_filter && echo function >current_tracer`},
	} {
		t.Run(strings.Trim(c.tells, ": ["), func(t *testing.T) {
			x := &exchanged{T: t, g: g, place: c.place}
			x.open()
			lines := x.start(filepath.Join(dir, c.name), c.args...)
			// Of two lines the second tells the change back. More come, since it is
			// not told when the monitor has looked first.
			next := func() (now, was string) {
				t.Helper()
				for x.exchange(); ; {
					select {
					case line, ok := <-lines:
						if !ok {
							t.Fatal("the monitor has ended")
						}
						rest, ok := strings.CutPrefix(line, c.tells)
						if now, was, _ = strings.Cut(rest, ", was "); !ok || was == "" {
							t.Fatalf("it printed %q", line)
						}
						if was != `""` { // nothing: the first look
							return now, was
						}
					case <-time.After(3 * time.Second):
						x.exchange()
					}
				}
			}
			one, other := next()
			if now, was := next(); !strings.Contains(now, other) || !strings.Contains(one, was) {
				t.Errorf("it printed %q, was %q, and then %q, was %q", one, other, now, was)
			}
			if c.then == "" {
				return
			}
			if _, err := g.Run(t.Context(), c.then); err != nil {
				t.Fatal(err)
			}
			if now, was := next(); now != one || was != other {
				t.Errorf("it printed %q, was %q, while the module was traced; want %q, was %q", now, was, one, other)
			}
			if _, err := g.Run(t.Context(), "echo nop >/sys/kernel/tracing/current_tracer"); err != nil {
				t.Error(err)
			}
		})
	}
}

// exchanged is memory of a guest that gets another content and its own again.
type exchanged struct {
	*testing.T
	g     *guestlab.Guest
	w     *vmscope.Guest
	place func(tx *vmscope.Tx) (mem.VA, []byte, error)
	at    mem.VA
	is    [2][]byte // what is there, and what is not
	own   bool      // what is there is its own
}

// open finds the place. What is changed there is undone when the test ends.
func (x *exchanged) open() {
	x.Helper()
	var err error
	if x.w, err = vmscope.Open(x.Context(), x.g.Name(), vmscope.Writable()); err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() { x.w.Close() })
	x.Cleanup(func() {
		if x.at != 0 && !x.own {
			x.exchange()
		}
	})
	err = x.w.Update(x.Context(), func(tx *vmscope.Tx) (err error) {
		if x.at, x.is[1], err = x.place(tx); err != nil {
			return err
		}
		x.is[0], x.own = make([]byte, len(x.is[1])), true
		_, err = tx.Mem.Read(x.is[0], x.at)
		return err
	})
	if errors.Is(err, ksym.ErrNoSymbol) {
		guestlab.Skip(x.T, err.Error())
	}
	if err != nil {
		x.Fatal(err)
	}
}

// exchange puts there what is not; also when the test's context has ended.
func (x *exchanged) exchange() {
	x.Helper()
	slices.Reverse(x.is[:])
	x.own = !x.own
	if err := x.w.Update(context.Background(), func(tx *vmscope.Tx) error {
		_, err := tx.Write(tx.Mem, x.is[0], x.at)
		return err
	}); err != nil {
		x.Fatal(err)
	}
}

// start runs a monitor of the guest until the test ends, and gives its lines.
func (x *exchanged) start(program string, args ...string) <-chan string {
	x.Helper()
	cmd := exec.Command(program, append([]string{x.g.Name()}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		x.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		x.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	x.Cleanup(func() {
		cmd.Process.Kill()
		for range lines {
		}
		cmd.Wait()
	})
	return lines
}

// slot is where the function of a system call stands in the table, and what it is.
func slot(tx *vmscope.Tx, n mem.VA) (at, function mem.VA, err error) {
	table, err := tx.Symbol("sys_call_table")
	if err != nil {
		return 0, 0, err
	}
	function, err = tx.Mem.Pointer(table + 8*n)
	return table + 8*n, function, err
}

// getpid is the number of that system call; acct and the others are such as
// nobody makes meanwhile.
const (
	getpid = 39
	uselib = 134
)

var unused = []mem.VA{163 /* acct */, 167 /* swapon */, 168 /* swapoff */, 179 /* quotactl */, 153 /* vhangup */, 155 /* pivot_root */}

// unusedCall is the slot of a system call that is gone long since.
func unusedCall(tx *vmscope.Tx) (mem.VA, []byte, error) {
	_, other, err := slot(tx, getpid)
	at, _, err2 := slot(tx, uselib)
	return at, binary.LittleEndian.AppendUint64(nil, uint64(other)), errors.Join(err, err2)
}

// unusedBranch is where x64_sys_call leads to an unused one: four bytes of a
// branch, within one of the words that the monitor tells of.
func unusedBranch(tx *vmscope.Tx) (mem.VA, []byte, error) {
	s, err := tx.LookupSymbol("x64_sys_call")
	if err != nil {
		return 0, nil, err
	}
	b := make([]byte, s.Size)
	if _, err := tx.Mem.Read(b, s.Addr); err != nil {
		return 0, nil, err
	}
	_, other, err := slot(tx, getpid)
	if err != nil {
		return 0, nil, err
	}
	for _, n := range unused {
		_, function, err := slot(tx, n)
		if err != nil {
			return 0, nil, err
		}
		for i := 1; i+4 <= len(b); i++ {
			branch := b[i-1] == 0xe8 || b[i-1] == 0xe9 || b[i-1]&0xf0 == 0x80 // call, jmp, the jumps on a condition
			behind := s.Addr + mem.VA(i) + 4
			if branch && i%8 <= 4 && behind+mem.VA(int64(int32(binary.LittleEndian.Uint32(b[i:])))) == function {
				return behind - 4, binary.LittleEndian.AppendUint32(nil, uint32(other-behind)), nil
			}
		}
	}
	return 0, nil, errors.New("x64_sys_call leads to no unused system call")
}

// endOfDummy is the last byte of the module dummy's code.
func endOfDummy(tx *vmscope.Tx) (mem.VA, []byte, error) {
	code, err := tx.Code()
	i := slices.IndexFunc(code, func(c kernel.Code) bool { return c.Kind == "module" && string(c.Name) == "dummy" })
	if i < 0 || err != nil {
		return 0, nil, fmt.Errorf("no module dummy: %w", err)
	}
	return code[i].Start + mem.VA(code[i].Size) - 1, []byte{0xf1}, nil
}
