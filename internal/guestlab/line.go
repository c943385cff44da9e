package guestlab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"vmscope/internal/guestlab/wire"
)

// A line is the host's end of the virtio-serial port: many calls at once over one connection.
type line struct {
	conn   net.Conn
	gone   <-chan struct{} // closed when QEMU is
	repeat time.Duration   // when an unanswered call is sent again

	out sync.Mutex // guards writing to conn

	mu      sync.Mutex
	waiting map[uint64]chan []byte
}

// repeatAfter is when an unanswered call is sent again, on a line that as good as never loses anything. The agent runs no
// call twice, so a repetition costs little; it is needed if a frame was damaged, or if the guest rebooted.
const repeatAfter = 20 * time.Second

var errGone = errors.New("QEMU has exited")

// dialLine connects as soon as QEMU has made its socket.
func dialLine(ctx context.Context, path string, gone <-chan struct{}) (*line, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			l := &line{conn: conn, gone: gone, repeat: repeatAfter, waiting: map[uint64]chan []byte{}}
			go l.receive()
			return l, nil
		}
		select {
		case <-gone:
			return nil, errGone
		case <-ctx.Done():
			return nil, fmt.Errorf("%w, last: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *line) close() { l.conn.Close() }

func (l *line) send(f wire.Frame) error {
	l.out.Lock()
	defer l.out.Unlock()
	return wire.WriteFrame(l.conn, f)
}

func (l *line) receive() {
	r := bufio.NewReaderSize(l.conn, 256<<10)
	for {
		f, err := wire.ReadFrame(r)
		if errors.Is(err, wire.ErrDamaged) {
			continue // asked for again
		}
		if err != nil {
			return // the guest is gone or closed; callers watch for that themselves
		}
		if f.Kind != wire.Result {
			continue
		}
		l.mu.Lock()
		if ch := l.waiting[f.ID]; ch != nil {
			select {
			case ch <- f.Payload:
			default: // answered already
			}
		}
		l.mu.Unlock()
	}
}

// call sends a request and waits for its reply.
func (l *line) call(ctx context.Context, req *wire.Request) (wire.Reply, error) {
	payload, err := json.Marshal(req)
	if err != nil {
		return wire.Reply{}, err
	}
	id := rand.Uint64() // random, so that the agent never takes a call for one of an earlier host
	answer := make(chan []byte, 1)
	l.mu.Lock()
	l.waiting[id] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, id)
		l.mu.Unlock()
	}()
	repeat := time.NewTicker(l.repeat)
	defer repeat.Stop()
	for {
		if err := l.send(wire.Frame{Kind: wire.Call, ID: id, Payload: payload}); err != nil {
			return wire.Reply{}, fmt.Errorf("line to the guest: %w", err)
		}
		select {
		case p := <-answer:
			l.send(wire.Frame{Kind: wire.Done, ID: id})
			return wire.DecodeReply(p)
		case <-repeat.C:
		case <-l.gone:
			return wire.Reply{}, errGone
		case <-ctx.Done():
			l.send(wire.Frame{Kind: wire.Cancel, ID: id})
			return wire.Reply{}, ctx.Err()
		}
	}
}
