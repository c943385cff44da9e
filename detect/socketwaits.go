package detect

import (
	"vmscope/ctype"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

// socketLayout is what names the tasks that wait for sockets.
type socketLayout struct {
	Head  ctype.Field `c:"wait_queue_head.head"` // include/linux/wait.h
	Entry ctype.Field `c:"wait_queue_entry.entry"`
	Func  ctype.Field `c:"wait_queue_entry.func"`
	Task  ctype.Field `c:"wait_queue_entry.private"`

	Polling ctype.Field `c:"poll_wqueues.polling_task,optional"` // include/linux/poll.h

	Wait  ctype.Field `c:"eppoll_entry.wait,optional"` // fs/eventpoll.c
	Item  ctype.Field `c:"eppoll_entry.base,optional"`
	Epoll ctype.Field `c:"epitem.ep,optional"`
	Queue ctype.Field `c:"eventpoll.wq,optional"`
}

// sleeps are functions that wake the task which an entry of a queue has.
var sleeps = []string{"default_wake_function", "autoremove_wake_function", "woken_wake_function", "receiver_wake_function", "ep_autoremove_wake_function"}

// socketWalk is one look at who waits for sockets.
type socketWalk struct {
	*Look
	f           *socketLayout
	wakes       map[mem.VA]bool // sleeps
	poll, epoll mem.VA          // functions that wake who waits for several files
	seen        map[mem.VA]bool // struct eventpoll
	each        func(task mem.VA) error
}

// onSockets gives the tasks that wait for a socket: for connections or data, alone
// or among others (poll, select, epoll).
func onSockets(l *Look, _ *waitLayout, _ []linux.Task, each func(mem.VA) error) error {
	f, err := bind[socketLayout](l)
	if err != nil {
		return nil // not a kernel with these
	}
	queues, bad := l.SocketQueues()
	w := &socketWalk{Look: l, f: f, wakes: make(map[mem.VA]bool), seen: make(map[mem.VA]bool), each: each}
	one := func(name string) mem.VA {
		s, err := ksym.Only(name, l.Named(name))
		if err != nil {
			return 0
		}
		return s.Addr
	}
	for _, name := range sleeps {
		if at := one(name); at != 0 {
			w.wakes[at] = true
		}
	}
	w.poll, w.epoll = one("pollwake"), one("ep_poll_callback")
	for _, q := range queues {
		if err := steady(w.queue(q), &bad); err != nil {
			return err
		}
	}
	return bad
}

// queue gives the tasks of one queue.
func (w *socketWalk) queue(at mem.VA) error {
	return w.List(w.f.Head.At(at), func(node mem.VA) error {
		entry := node - mem.VA(w.f.Entry.Offset)
		does, err := w.Mem.Pointer(w.f.Func.At(entry))
		if err != nil || does == 0 {
			return err
		}
		switch {
		case w.wakes[does]:
			task, err := w.Mem.Pointer(w.f.Task.At(entry))
			if err != nil {
				return err
			}
			return w.each(task)
		case does == w.poll && w.f.Polling.Valid():
			table, err := w.Mem.Pointer(w.f.Task.At(entry))
			if err != nil {
				return err
			}
			task, err := w.Mem.Pointer(w.f.Polling.At(table))
			if err != nil {
				return err
			}
			return w.each(task)
		case does == w.epoll && w.f.Wait.Valid() && w.f.Item.Valid() && w.f.Epoll.Valid() && w.f.Queue.Valid():
			return w.polled(entry - mem.VA(w.f.Wait.Offset))
		}
		return nil
	})
}

// polled gives the tasks that wait for a set of files (struct eventpoll) that a
// socket is one of. Such sets may be in others: those are not gone into.
func (w *socketWalk) polled(entry mem.VA) error {
	item, err := w.Mem.Pointer(w.f.Item.At(entry))
	if err != nil {
		return err
	}
	set, err := w.Mem.Pointer(w.f.Epoll.At(item))
	if err != nil || w.seen[set] {
		return err
	}
	w.seen[set] = true
	return w.List(w.f.Head.At(w.f.Queue.At(set)), func(node mem.VA) error {
		entry := node - mem.VA(w.f.Entry.Offset)
		does, err := w.Mem.Pointer(w.f.Func.At(entry))
		if err != nil || !w.wakes[does] {
			return err
		}
		task, err := w.Mem.Pointer(w.f.Task.At(entry))
		if err != nil {
			return err
		}
		return w.each(task)
	})
}
