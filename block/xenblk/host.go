package xenblk

import "vmscope/internal/xenbus"

// Grants reaches pages that other domains grant. It is safe for concurrent use.
type Grants interface {
	// Map maps one page of a domain for each grant, side by side, to be written too.
	Map(domain uint16, refs []uint32) ([]byte, error)
	// Unmap gives back what Map gave.
	Unmap(mem []byte) error
	// Copy does all copies, or gives an error.
	Copy(domain uint16, list []Copy) error
}

// Copy is between memory of ours and a part of a granted page.
type Copy struct {
	Ref     uint32
	Off     int    // in the page; Off+len(Mem) lies in it too
	Mem     []byte // on the heap, or mapped
	ToGuest bool
}

// Events makes ports of event channels.
type Events interface {
	// Bind binds to a port that a domain offers to us.
	Bind(domain uint16, port uint32) (Port, error)
}

// Port is our end of an event channel.
type Port interface {
	// Wait returns when the other side has called since the last Wait, or with an error after Close. It is for one goroutine.
	Wait() error
	// Notify calls the other side.
	Notify() error
	Close() error
}

// Host is where the back end runs.
type Host struct {
	Store  *xenbus.Client
	Grants Grants
	Events Events
	// Claim takes a vbd away from the kernel's own back end, if that has it. May be nil.
	Claim func(v Vbd) error
}
