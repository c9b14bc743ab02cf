#!/bin/sh
# Not mstconfig: a program that keeps a state and speaks as mstconfig's and mlxconfig's documentation says (MFT documentation, "mlxconfig";
# mstflint, mlxconfig/mlxcfg_ui.cpp). Not seen on hardware. Beside it lies one file for each setting of a board with "default current next", and
# `reboot`, which makes what is next the current.
state=$(dirname "$0")/state
query=0 extended=0
while [ $# -gt 0 ]; do
    case $1 in
    -d) device=$2; shift ;;
    -e) extended=1 ;;
    -y) ;;
    query | q) query=1 ;;
    set) shift; break ;;
    *) echo "-E- Unknown argument: $1" >&2; exit 1 ;;
    esac
    shift
done
if [ -e "$state/hangs" ]; then sleep 600; fi
if [ -e "$state/denied" ]; then echo "-E- Failed to open the device: $device. Permission denied" >&2; exit 3; fi
if [ $query = 1 ]; then
    printf '\nDevice #1:\n----------\n\nDevice type:        ConnectX5\nName:               MCX556A-ECA_Ax\n'
    printf 'Description:        ConnectX-5 VPI adapter card; dual-port QSFP28\nDevice:             %s\n\n' "$device"
    if [ $extended = 1 ]; then
        printf 'Configurations:                                      Default             Current             Next Boot\n'
    else
        printf 'Configurations:                                      Next Boot\n'
    fi
    for file in MEMIC_BAR_SIZE SRIOV_EN NUM_OF_VFS LINK_TYPE_P1 LINK_TYPE_P2; do
        [ -e "$state/$file" ] || continue
        read -r default current next < "$state/$file"
        star=' '
        [ "$default" = "$next" ] && [ "$current" = "$next" ] || star='*'
        if [ $extended = 1 ]; then
            printf '%s       %-40s %-20s%-20s%-20s\n' "$star" "$file" "$default" "$current" "$next"
        else
            printf '        %-40s %-20s\n' "$file" "$next"
        fi
    done
    echo "The '*' shows parameters with next value different from default/current value."
    exit 0
fi
printf '\nDevice #1:\n----------\n\nDevice:             %s\n\nConfigurations:                              Next Boot       New\n' "$device"
for assignment in "$@"; do
    file=${assignment%%=*} value=${assignment#*=}
    if [ ! -e "$state/$file" ]; then echo "-E- The Device doesn't support $file parameter" >&2; exit 1; fi
    read -r default current next < "$state/$file"
    case $file-$value in
    SRIOV_EN-0) value='False(0)' ;;
    SRIOV_EN-1) value='True(1)' ;;
    LINK_TYPE*-1) value='IB(1)' ;;
    LINK_TYPE*-2) value='ETH(2)' ;;
    NUM_OF_VFS-*) if [ "$value" -gt 127 ]; then echo "-E- Failed to set NUM_OF_VFS: value is out of range" >&2; exit 1; fi ;;
    esac
    printf '         %-35s %-15s %-15s\n' "$file" "$next" "$value"
    [ -e "$state/deaf" ] || echo "$default $current $value" > "$state/$file"
done
printf '\n Apply new Configuration? (y/n) [n] : y\nApplying... Done!\n-I- Please reboot machine to load new configurations.\n'
