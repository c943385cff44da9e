package tap

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/vm/qemu"
)

// TestComeAndGo attaches and leaves again and again while the guest writes; every other receiver is killed amid. QEMU
// must bear it. VMSCOPE_TAP_ROUNDS asks for more rounds.
func TestComeAndGo(t *testing.T) {
	g := lab(t)
	rounds := 10
	if n, err := strconv.Atoi(os.Getenv("VMSCOPE_TAP_ROUNDS")); err == nil {
		rounds = n
	}
	stop := load(t, g)
	for i := range rounds {
		tap := attachTo(t, g, "vda", Options{})
		d := drink(tap)
		time.Sleep(time.Duration(i*7%40) * time.Millisecond)
		if i%2 == 1 {
			r, _ := helpers(t, tap)
			sig(t, r, syscall.SIGKILL)
			helpers(t, tap, r)
		}
		tap.Close()
		<-d.done
		select {
		case <-g.Exited():
			t.Fatalf("QEMU ended in round %d", i)
		default:
		}
	}
	// Readers of an export that are killed, with their receivers or alone.
	for i := range rounds / 2 {
		cmd := startReader(t, g, "cow")
		if i%2 == 1 {
			for _, p := range ours(t) {
				if pid, err := strconv.Atoi(strings.Fields(p)[0]); err == nil && pid != os.Getpid() {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		nobody(t)
	}
	attachTo(t, g, "cow", Options{}).Close()
	n, worst := stop()
	t.Logf("%d rounds, %d writes in the guest, the slowest %v", rounds, n, worst)
	clean(t, g)
	nobody(t)

	// A guest that is paused is tapped as well, and one that ends is told as such.
	tap := attachTo(t, g, "vda", Options{})
	d := drink(tap)
	p, err := qemu.Find(g.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"stop", "cont", "quit"} {
		m, err := p.Monitor(t.Context())
		if err != nil {
			t.Fatal(command, err)
		}
		m.Run(t.Context(), command, nil)
		m.Close()
		time.Sleep(100 * time.Millisecond)
	}
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the guest has ended, the stream has not")
	}
	if !errors.Is(d.err, ErrGuestEnded) {
		t.Error(d.err)
	}
	tap.Close()
	nobody(t)
}
