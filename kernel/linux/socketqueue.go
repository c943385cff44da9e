package linux

import (
	"vmscope/ctype"
	"vmscope/mem"
)

// queueLayout is where those wait who wait for a socket.
type queueLayout struct {
	Queue ctype.Field `c:"sock.sk_wq"` // include/net/sock.h
	Wait  ctype.Field `c:"socket_wq.wait"`
}

// SocketQueues are the queues (struct wait_queue_head) of those who wait for one
// of the sockets that Sockets lists. What could not be read is told beside the
// others.
func (v *View) SocketQueues() ([]mem.VA, error) {
	l, err := layout[queueLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	r, err := v.sockets()
	if err != nil {
		return nil, err
	}
	r.anybodys = true
	r.note(r.list())
	var out []mem.VA
	for _, s := range r.out {
		if s.Inode == 0 {
			continue // nobody has it
		}
		queue, err := v.Mem.Pointer(l.Queue.At(s.Addr))
		if err != nil && !r.note(err) {
			break
		}
		if err == nil && queue != 0 {
			out = append(out, l.Wait.At(queue))
		}
	}
	return out, r.bad.err()
}
