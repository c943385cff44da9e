package tap

import (
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
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
	n, worst := stop()
	t.Logf("%d rounds, %d writes in the guest, the slowest %v", rounds, n, worst)
	clean(t, g)
	nobody(t)
}
