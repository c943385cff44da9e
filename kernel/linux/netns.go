package linux

import (
	"fmt"

	"vmscope/ctype"
	"vmscope/mem"
)

// netLayout is what is read of struct net (include/net/net_namespace.h) to find
// the tables of its sockets.
type netLayout struct {
	List ctype.Field `c:"net.list"`
	Inum ctype.Field `c:"net.ns.inum"`
	// Each namespace says which table of TCP sockets it uses since v6.1, of
	// UDP sockets since v6.2 (ba6aac151677, "udp: Access &udp_table via net."),
	// and has one of unix-domain sockets since v6.0 (cf2f225e2653, "af_unix:
	// Put a socket into a per-netns hash table."). Before, there is one table
	// for all.
	TCP  ctype.Field `c:"net.ipv4.tcp_death_row.hashinfo,optional"`
	UDP  ctype.Field `c:"net.ipv4.udp_table,optional"`
	Unix ctype.Field `c:"net.unx.table.buckets,optional"`
}

// maxNetNS bounds the network namespaces; each takes megabytes of a real guest.
const maxNetNS = 1 << 16

// netNS is one network namespace.
type netNS struct {
	addr           mem.VA
	inum           uint64
	tcp, udp, unix mem.VA // its tables, 0 if it has none of its own
}

// netNamespaces lists the network namespaces, the first one first.
func (v *View) netNamespaces() ([]netNS, error) {
	l, err := layout[netLayout](v.Kernel)
	if err != nil {
		return nil, err
	}
	head, err := v.Symbol("net_namespace_list")
	if err != nil {
		return nil, err
	}
	var out []netNS
	err = v.settle(func() error {
		out = out[:0]
		return v.List(head, func(node mem.VA) error {
			if len(out) >= maxNetNS {
				return errBroken("net_namespace_list", node, fmt.Sprintf("more than %d", maxNetNS))
			}
			n := netNS{addr: node - mem.VA(l.List.Offset)}
			var err error
			if n.inum, err = v.netInode(l, n.addr); err != nil {
				return err
			}
			for _, t := range []struct {
				f  ctype.Field
				to *mem.VA
			}{{l.TCP, &n.tcp}, {l.UDP, &n.udp}, {l.Unix, &n.unix}} {
				if t.f.Valid() {
					if *t.to, err = v.Mem.Pointer(t.f.At(n.addr)); err != nil {
						return err
					}
				}
			}
			out = append(out, n)
			return nil
		})
	})
	return out, err
}

func (v *View) netInode(l *netLayout, net mem.VA) (uint64, error) {
	n, err := v.Mem.Uint32(l.Inum.At(net))
	return uint64(n), err
}

// nsLayout is what is read of a task's namespaces (include/linux/nsproxy.h).
type nsLayout struct {
	Proxy ctype.Field `c:"task_struct.nsproxy"`
	Mnt   ctype.Field `c:"nsproxy.mnt_ns"`
	UTS   ctype.Field `c:"nsproxy.uts_ns"`
	IPC   ctype.Field `c:"nsproxy.ipc_ns"`
	PID   ctype.Field `c:"nsproxy.pid_ns_for_children"`
	Net   ctype.Field `c:"nsproxy.net_ns"`
	// These two came later than the rest: v4.6 and v5.6.
	CGroup ctype.Field `c:"nsproxy.cgroup_ns,optional"`
	Time   ctype.Field `c:"nsproxy.time_ns,optional"`

	MntInum    ctype.Field `c:"mnt_namespace.ns.inum"`
	UTSInum    ctype.Field `c:"uts_namespace.ns.inum"`
	IPCInum    ctype.Field `c:"ipc_namespace.ns.inum"`
	PIDInum    ctype.Field `c:"pid_namespace.ns.inum"`
	NetInum    ctype.Field `c:"net.ns.inum"`
	CGroupInum ctype.Field `c:"cgroup_namespace.ns.inum,optional"`
	TimeInum   ctype.Field `c:"time_namespace.ns.inum,optional"`
}

// Namespaces are the inode numbers of a task's namespaces: what the links in
// /proc/PID/ns name. 0 stands for a kind that the kernel lacks. PID is the one
// that the task's children are put into (pid_for_children).
type Namespaces struct {
	Mnt, UTS, IPC, PID, Net, CGroup, Time uint64
}

// Namespaces reads which namespaces a task is in. A task that is exiting has
// none any more: all are 0 then.
func (v *View) Namespaces(t Task) (Namespaces, error) {
	var n Namespaces
	l, err := layout[nsLayout](v.Kernel)
	if err != nil {
		return n, err
	}
	err = v.settle(func() error {
		n = Namespaces{}
		proxy, err := v.Mem.Pointer(l.Proxy.At(t.Addr))
		if err != nil || proxy == 0 {
			return err
		}
		for _, k := range []struct {
			ns, inum ctype.Field
			to       *uint64
		}{
			{l.Mnt, l.MntInum, &n.Mnt}, {l.UTS, l.UTSInum, &n.UTS}, {l.IPC, l.IPCInum, &n.IPC}, {l.PID, l.PIDInum, &n.PID},
			{l.Net, l.NetInum, &n.Net}, {l.CGroup, l.CGroupInum, &n.CGroup}, {l.Time, l.TimeInum, &n.Time},
		} {
			if !k.ns.Valid() || !k.inum.Valid() {
				continue
			}
			ns, err := v.Mem.Pointer(k.ns.At(proxy))
			if err != nil {
				return err
			}
			if ns == 0 {
				continue
			}
			inum, err := v.Mem.Uint32(k.inum.At(ns))
			if err != nil {
				return err
			}
			*k.to = uint64(inum)
		}
		return nil
	})
	if v.gone(&t) {
		return Namespaces{}, nil
	}
	return n, err
}
