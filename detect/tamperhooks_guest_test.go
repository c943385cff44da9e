package detect

import (
	"errors"
	"fmt"

	"vmscope/ksym"
	"vmscope/mem"
)

// errFound ends a walk that has found what it looked for.
var errFound = errors.New("found")

// procEntry is an entry of /proc by its path.
func (v *victim) procEntry(path string) (at mem.VA) {
	v.Helper()
	nets, err := v.tx.NetNamespaces()
	if err != nil || len(nets) == 0 {
		v.Fatal(err)
	}
	for _, root := range []mem.VA{v.symbol("proc_root"), v.pointer(v.member(nets[0].Addr, "net", "proc_net"))} {
		err := v.tx.ProcEntries(root, func(entry mem.VA, _ bool) error {
			if p, err := v.tx.ProcPath(entry); err != nil || p != path {
				return err
			}
			at = entry
			return errFound
		})
		if errors.Is(err, errFound) {
			return at
		}
		if err != nil {
			v.Fatal(err)
		}
	}
	v.Fatalf("no /proc%s", path)
	return 0
}

// bend makes the function pointer at an address lead nowhere, and gives the
// words that tell so.
func (v *victim) bend(at mem.VA, words ...string) []string {
	v.put(at, uint64(v.nowhere()))
	return append(words, fmt.Sprintf("%#x", uint64(at)), fmt.Sprintf("%#x", uint64(v.nowhere())), "nobody")
}

// replaced makes a pointer lead to an object of a type in spare memory whose
// member leads nowhere.
func (v *victim) replaced(at mem.VA, typ, member string, words ...string) []string {
	ops := v.spare(1024)
	v.put(at, uint64(ops))
	return v.bend(v.member(ops, typ, member), words...)
}

// hookTamperings bend what Hooks looks at: each walker once.
var hookTamperings = []tampering{
	{"file of /proc by function", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.procEntry("/version"), "proc_dir_entry", "single_show"), "/proc/version", "single_show")
	}},
	{"file of /proc by operations", "hooks", func(v *victim) []string {
		return v.replaced(v.member(v.procEntry("/cpuinfo"), "proc_dir_entry", "proc_ops"), "proc_ops", "proc_read", "proc_read of proc_ops")
	}},
	{"connections in /proc/net/tcp", "hooks", func(v *victim) []string {
		return v.replaced(v.member(v.procEntry("/net/tcp"), "proc_dir_entry", "seq_ops"), "seq_operations", "show", "show of seq_operations")
	}},
	{"directory of processes", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("proc_root_operations"), "file_operations", "iterate_shared"), "iterate_shared of file_operations", "proc_root_operations")
	}},
	{"root directory of a file system", "hooks", func(v *victim) []string {
		sb := v.pointer(v.symbol("super_blocks")) - (v.member(0, "super_block", "s_list"))
		inode := v.pointer(v.member(v.pointer(v.member(sb, "super_block", "s_root")), "dentry", "d_inode"))
		return v.replaced(v.member(inode, "inode", "i_op"), "inode_operations", "lookup", "lookup of inode_operations")
	}},
	{"file system", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("proc_fs_type"), "file_system_type", "kill_sb"), "kill_sb of file_system_type", "proc_fs_type")
	}},
	{"file of sysfs", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("sysfs_file_kfops_rw"), "kernfs_ops", "seq_show"), "seq_show of kernfs_ops", "sysfs_file_kfops_rw")
	}},
	{"objects of sysfs", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("dev_sysfs_ops"), "sysfs_ops", "store"), "store of sysfs_ops", "dev_sysfs_ops")
	}},
	{"packet filter", "hooks", func(v *victim) []string {
		entries := v.spare(64)
		v.write(entries, []byte{1, 0})
		v.put(v.member(v.symbol("init_net"), "net", "nf.hooks_ipv4[1]"), uint64(entries))
		return v.bend(v.member(entries, "nf_hook_entries", "hooks"), "packet filter 0 of hooks_ipv4[1]")
	}},
	{"line discipline", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.pointer(v.symbol("tty_ldiscs")), "tty_ldisc_ops", "receive_buf"), "receive_buf of tty_ldisc_ops", "tty_ldiscs")
	}},
	{"keyboard notifier", "hooks", func(v *victim) []string {
		head := v.member(v.symbol("keyboard_notifier_list"), "atomic_notifier_head", "head")
		return v.replaced(head, "notifier_block", "notifier_call", "keyboard_notifier_list")
	}},
	{"security module", "hooks", func(v *victim) []string {
		if heads, err := v.tx.Symbol("security_hook_heads"); !errors.Is(err, ksym.ErrNoSymbol) {
			return v.replaced(v.member(heads, "security_hook_heads", "file_open"), "security_hook_list", "hook", "hook file_open")
		}
		call := v.member(v.symbol("static_calls_table"), "lsm_static_calls_table", "file_open[0]")
		key := v.pointer(v.member(call, "lsm_static_call", "key"))
		return v.bend(v.member(key, "static_call_key", "func"), "security hook", "file_open[0]")
	}},
	{"program format", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("elf_format"), "linux_binfmt", "load_binary"), "load_binary of linux_binfmt")
	}},
	{"protocol", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("tcp_prot"), "proto", "recvmsg"), "recvmsg of proto", "tcp_prot")
	}},
	{"socket", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("inet_stream_ops"), "proto_ops", "accept"), "accept of proto_ops", "inetsw")
	}},
	{"packets", "hooks", func(v *victim) []string {
		return v.bend(v.member(v.symbol("ip_packet_type"), "packet_type", "func"), "func of packet_type", "ip_packet_type")
	}},
	{"loader of modules", "hooks", func(v *victim) []string {
		v.write(v.symbol("modprobe_path"), []byte("/tmp/x\x00"))
		return []string{`"/tmp/x"`, "modprobe_path"}
	}},
}
