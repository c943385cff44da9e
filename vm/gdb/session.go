package gdb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/resume"
	"vmscope/mem"
	"vmscope/vm"
)

// helperKind is that of guests behind a stub among those that helpers see to.
const helperKind = "gdb"

// RunResumeHelper must be called first thing in main by every program that opens guests by this package. In the program
// itself it returns at once. Open starts the same program again as a helper, which in here lets the guest run if the
// program has died while it stood still.
func RunResumeHelper() { resume.Run(helperKind, new(waker).wake) }

// waker lets a guest run that a dead program has stopped.
type waker struct {
	began time.Time // of the first try
}

// maxWait is how long a waker tries. It cannot tell a stub that a debugger holds, which answers nobody else (QEMU's has
// one client at a time), from one that is cut off or hangs, and who gives up too early leaves a guest stopped that we
// stopped: a try an hour costs nothing. Who had the guest for that long has it in hand.
const maxWait = 12 * time.Hour

func (w *waker) wake(addr string) (done bool) {
	if w.began.IsZero() { // not when the helper was started: the program may have lived for days
		w.began = time.Now()
	}
	s, err := connect(addr, time.Hour)
	if err == nil {
		s.stopped = true
		err = s.detach()
	}
	// Whether a reset or silence came before the guest was let go is not known. To let it go twice does no harm.
	return err == nil || refused(err) || errors.Is(err, errProtocol) || time.Since(w.began) > maxWait
}

// refused reports whether nobody listens: there is no guest, or not there.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && !op.Timeout()
}

// session is a connection to a stub, which has stopped the guest for it.
type session struct {
	*conn
	stopped  bool // it is we who stopped the guest, not somebody before
	physical bool // memory is read by physical addresses
	chunk    int  // bytes that one packet reads
}

// network tells how an address is dialled, and completes it: "HOST:PORT", ":PORT" and "PORT" on this host, "/path" of a
// unix socket.
func network(addr string) (kind, full string) {
	if strings.HasPrefix(addr, "/") {
		return "unix", addr
	}
	if _, err := strconv.ParseUint(addr, 10, 16); err == nil {
		addr = ":" + addr
	}
	if strings.HasPrefix(addr, ":") {
		addr = "localhost" + addr
	}
	return "tcp", addr
}

// connect connects to a stub, by which the guest stops, and sets it up.
func connect(addr string, wait time.Duration) (*session, error) {
	kind, full := network(addr)
	if _, _, err := net.SplitHostPort(full); err != nil && kind == "tcp" {
		return nil, fmt.Errorf("%w: give HOST:PORT, PORT, or the path of a socket: %w", vm.ErrNoVM, &net.OpError{Op: "dial", Net: kind, Err: err})
	}
	c, err := net.DialTimeout(kind, full, patience)
	if err != nil && refused(err) && errors.Is(err, unix.ECONNREFUSED) {
		err = fmt.Errorf("nobody listens there: QEMU needs -gdb tcp::PORT, or 'gdbserver tcp::PORT' in its monitor (%w)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", mem.ErrUnreachable, err)
	}
	s := &session{conn: newConn(c)}
	s.until = time.Now().Add(wait)
	err = s.setUp()
	var t net.Error
	if errors.As(err, &t) && t.Timeout() {
		err = fmt.Errorf("no answer: a debugger is attached, or it is no GDB stub (%w)", err)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%w: %w", mem.ErrUnreachable, err)
	}
	return s, nil
}

func (s *session) setUp() error {
	if err := s.send("qSupported:xmlRegisters=i386"); err != nil {
		return err
	}
	b, err := s.receive()
	// QEMU tells of the stop that the connection caused (gdbstub, gdb_vm_state_change). A guest that stood still already
	// has none to tell.
	if err == nil && len(b) > 0 && (b[0] == 'T' || b[0] == 'S') {
		s.stopped = true
		b, err = s.receive()
	}
	if err != nil {
		return err
	}
	size := uint64(0)
	for f := range strings.SplitSeq(string(b), ";") {
		if v, ok := strings.CutPrefix(f, "PacketSize="); ok {
			size, _ = strconv.ParseUint(v, 16, 32)
		}
	}
	// A byte is two digits, and a packet has some more around them.
	s.chunk = (int(min(max(size, 512), maxPacket/2)) - 64) / 2
	ok, err := s.ask("QStartNoAckMode")
	if err != nil {
		return err
	}
	s.ack = ok != "OK"
	ok, err = s.ask("Qqemu.PhyMemMode:1")
	s.physical = ok == "OK"
	return err
}

// detach lets go of the guest: it runs if it ran before.
func (s *session) detach() error {
	defer s.Close()
	s.until = time.Now().Add(patience)
	if s.physical {
		if _, err := s.ask("Qqemu.PhyMemMode:0"); err != nil {
			return err
		}
	}
	if !s.stopped {
		return nil // it stands still as before
	}
	ok, err := s.ask("D")
	if err == nil && ok != "OK" {
		err = fmt.Errorf("the stub answers %.40q: %w", ok, errProtocol)
	}
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// depth is how many reads are under way at once.
const depth = 16

// read reads p at pa, several packets ahead of the answers.
func (s *session) read(p []byte, pa mem.PA) (n int, err error) {
	size := func(at int) int { return min(s.chunk, len(p)-at) }
	for sent := 0; n < len(p); {
		var ahead []string
		for sent < len(p) && sent-n < depth*s.chunk && (sent == n || !s.ack) {
			ahead = append(ahead, fmt.Sprintf("m%x,%x", uint64(pa)+uint64(sent), size(sent)))
			sent += size(sent)
		}
		if err := s.send(ahead...); err != nil {
			return n, err
		}
		b, err := s.receive()
		if err != nil {
			return n, err
		}
		want := size(n)
		if len(b) != 2*want {
			return n, fmt.Errorf("read %d bytes at %#x: the stub answers %.40q: %w", want, uint64(pa)+uint64(n), b, errProtocol)
		}
		if _, err := hex.Decode(p[n:n+want], b); err != nil {
			return n, fmt.Errorf("read %d bytes at %#x: the stub answers %.40q: %w", want, uint64(pa)+uint64(n), b, errProtocol)
		}
		n += want
	}
	return n, nil
}

// write writes p at pa.
func (s *session) write(p []byte, pa mem.PA) (n int, err error) {
	for n < len(p) {
		k := min(s.chunk, len(p)-n)
		ok, err := s.ask(fmt.Sprintf("M%x,%x:%x", uint64(pa)+uint64(n), k, p[n:n+k]))
		if err != nil || ok != "OK" {
			return n, fmt.Errorf("write %d bytes at %#x: the stub answers %.40q: %w", k, uint64(pa)+uint64(n), ok, errors.Join(err, errProtocol))
		}
		n += k
	}
	return n, nil
}
